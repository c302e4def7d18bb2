"""One adapter an engine family: metric names, event dialect, admin calls; and the step-time cost model."""
