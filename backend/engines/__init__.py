"""One adapter an engine family: metric names, event dialect, admin calls; and the step-time cost model."""

from backend.engines.base import EngineAdapter, EventSourceInfo, MetricNames, adapter, known_engines
from backend.engines.cost import StepCost

__all__ = ["EngineAdapter", "EventSourceInfo", "MetricNames", "StepCost", "adapter", "known_engines"]
