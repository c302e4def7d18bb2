"""The cache map as a plot: one byte a cell, fixed colour limits, a new plot only when pods or buckets change."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import panel as pn
from bokeh.models import CustomJSHover, HoverTool
from bokeh.themes import Theme as BokehTheme
from holoviews.streams import Pipe

from apps.components.text import natural
from apps.core.theme import Theme, bokeh_theme, map_palette
from backend.api.cache import CacheMap

NAMED_PODS = 48
"""Beyond this many rows names would overlap; the pointer still tells them."""
LONGEST_NAME = 28
Shape = tuple[tuple[str, ...], int, int, int]


class HeatMap:
    """`pane` goes on the page; `show` brings it to a new map."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self._pipe: Pipe | None = None
        self._shape: Shape | None = None
        self._sent: bytes = b""
        self.pane = pn.pane.HoloViews(theme=BokehTheme(json=bokeh_theme(theme)), sizing_mode="stretch_width", margin=0, visible=False)

    def show(self, data: CacheMap) -> None:
        if not data.pods:
            self.pane.visible = False
            return
        order = sorted(range(len(data.pods)), key=lambda at: natural(data.pods[at]))
        pods = tuple(data.pods[at] for at in order)
        counts = np.array(data.blocks, dtype=np.int64).reshape(len(data.pods), data.bins)[order]
        top = _ceiling(int(counts.max(initial=0)))
        unit = -(-top // 255)
        cells = np.minimum(-(-counts // unit), 255).astype(np.uint8)
        shape: Shape = (pods, data.bins, top, unit)
        if shape != self._shape or self._pipe is None:
            self._shape, self._sent = shape, cells.tobytes()
            self._pipe = Pipe(data=cells)
            self.pane.object = self._plot(shape, self._pipe)
            self.pane.visible = True
        elif cells.tobytes() != self._sent:
            self._sent = cells.tobytes()
            self._pipe.send(cells)

    def close(self) -> None:
        """Let go of the plot's stream, which would keep what it draws."""
        if self._pipe is not None:
            self._pipe.clear("all")

    def _plot(self, shape: Shape, pipe: Pipe) -> Any:
        pods, bins, top, unit = shape
        bounds = (0, -0.5, bins, len(pods) - 0.5)

        def image(data: Any) -> Any:
            return hv.Image(data, bounds=bounds, kdims=["bucket", "row"], vdims=["blocks"])

        names = list(reversed(pods))
        ticks = [(at, shorten(name)) for at, name in enumerate(names)] if len(pods) <= NAMED_PODS else []
        label = "blocks" if unit == 1 else f"blocks, in {unit}s"
        return hv.DynamicMap(image, streams=[pipe]).opts(
            cmap=map_palette(self._theme),
            clim=(0, -(-top // unit)),
            colorbar=True,
            clabel=label,
            colorbar_opts={"width": 10, "padding": 4},
            yticks=ticks or None,
            yaxis="left" if ticks else "bare",
            xlabel=f"prefix space, {bins} buckets",
            ylabel="" if ticks else f"{len(pods)} pods",
            height=max(170, min(640, 86 + max(3, 26 if len(pods) <= 16 else 12) * len(pods))),
            responsive=True,
            default_tools=[],
            toolbar=None,
            tools=[_hover(names, unit)],
            backend="bokeh",
        )


def shorten(name: str) -> str:
    """Long pod names keep their end: that is where they differ."""
    return name if len(name) <= LONGEST_NAME else "…" + name[-(LONGEST_NAME - 1) :]


def _ceiling(largest: int) -> int:
    """Top of the colour scale: the next of 8, 12, 16, 24, 32, ..., so that it moves rarely and still uses its colours."""
    top = 8
    while largest > top:
        top = top * 3 // 2 if top & (top - 1) == 0 else top * 4 // 3
    return top


def _hover(names: list[str], unit: int) -> HoverTool:
    which = CustomJSHover(args={"names": names}, code="return names[Math.round(value)] ?? ''")
    blocks = "@image" if unit == 1 else f"@image × {unit}"
    return HoverTool(tooltips=[("pod", "$y{custom}"), ("bucket", "$x{0}"), ("blocks", blocks)], formatters={"$y": which})
