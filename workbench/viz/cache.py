"""What every pod has cached, drawn."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import holoviews as hv
import numpy as np

from backend.api.cache import CacheMap

PIXELS_A_POD = 22
SMALLEST_HEIGHT = 180
LARGEST_HEIGHT = 900


def heat_map(data: CacheMap) -> Any:
    """Pods (rows, first on top) × buckets of the prefix space; colour is blocks held. Options apply when Bokeh draws."""
    counts = np.array(data.blocks, dtype=np.float64).reshape(len(data.pods), data.bins)
    pods = len(data.pods)
    image = hv.Image(
        counts,
        bounds=(0, -0.5, data.bins, pods - 0.5) if pods else (0, 0, max(1, data.bins), 1),
        kdims=[hv.Dimension("bucket", label="prefix bucket"), hv.Dimension("row", label="pod")],
        vdims=[hv.Dimension("blocks", label="blocks held")],
    )
    return _dressed(image, data, pods)


def _dressed(image: Any, data: CacheMap, pods: int) -> Any:
    import holoviews.plotting.bokeh  # noqa: F401  registers Bokeh's options; loads nothing into a notebook

    at = datetime.fromtimestamp(data.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    # The first row of an image lies on top, and positions count from below.
    ticks = [(pods - 1 - row, name) for row, name in enumerate(data.pods)]
    return image.opts(
        title=f"KV blocks held by pod and prefix bucket, {at}{' (stale)' if data.stale else ''}",
        cmap="viridis",
        colorbar=True,
        clabel="blocks held",
        **({"yticks": ticks} if ticks else {}),
        xlabel=f"prefix bucket (of {data.bins})",
        ylabel="",
        tools=["hover"],
        height=min(LARGEST_HEIGHT, max(SMALLEST_HEIGHT, 90 + PIXELS_A_POD * pods)),
        responsive=True,
        backend="bokeh",
    )
