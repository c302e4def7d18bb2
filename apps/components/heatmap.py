"""The cache map as a plot: one byte a cell, fixed colour limits, a new plot only when pods or buckets change."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import panel as pn
from bokeh.models import CustomJSHover, HoverTool
from bokeh.themes import Theme as BokehTheme

from apps.components.text import natural
from apps.core.theme import Theme, bokeh_theme, map_palette
from backend.api.cache import CacheMap

NAMED_PODS = 48
"""Beyond this many rows names would overlap; the pointer still tells them."""
LONGEST_NAME = 28
Shape = tuple[tuple[str, ...], int, int]
"""Pods, buckets, blocks a step of a cell."""


class HeatMap:
    """`pane` goes on the page; `show` brings it to a new map.

    HoloViews draws the figure once for its pods and buckets. After that only bytes that changed go into the figure's own data
    source: letting HoloViews draw every second costs a third of a core.
    """

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self._shape: Shape | None = None
        self._top = 0
        self._handles: dict[str, Any] = {}
        """The drawn figure's parts by HoloViews' names; empty until it is drawn."""
        self._cells: bytes = b""
        self._plot = pn.pane.HoloViews(theme=BokehTheme(json=bokeh_theme(theme)), sizing_mode="stretch_width", margin=0)
        # Hidden and greyed from outside: a figure that is drawn while it is hidden keeps its size of nothing.
        self.pane = pn.Column(self._plot, sizing_mode="stretch_width", margin=0, visible=False)

    def show(self, data: CacheMap) -> None:
        if not data.pods:
            self.pane.visible = False
            return
        order = sorted(range(len(data.pods)), key=lambda at: natural(data.pods[at]))
        counts = np.array(data.blocks, dtype=np.int64).reshape(len(data.pods), data.bins)[order]
        largest = int(counts.max(initial=0))
        top = self._top if self._top // 4 <= largest <= self._top else _ceiling(largest)
        unit = -(-top // 255)
        cells = np.minimum(-(-counts // unit), 255).astype(np.uint8)
        shape: Shape = (tuple(data.pods[at] for at in order), data.bins, unit)
        if shape != self._shape:
            self._shape = shape
            self._handles.clear()
            self.pane.visible = True
            self._plot.object = self._draw(cells, shape, top)
        elif self._handles:
            self._update(cells, top)
        else:
            # Nobody has this page on screen yet: what will be drawn is the newest.
            self._plot.object = self._draw(cells, shape, top)
        self._top, self._cells = top, cells.tobytes()

    def _update(self, cells: Any, top: int) -> None:
        if top != self._top:
            self._handles["color_mapper"].high = _high(top)
        if cells.tobytes() != self._cells:
            # Bokeh's first row is the lowest.
            self._handles["source"].patch({"image": [(0, np.ascontiguousarray(cells[::-1]))]})

    def _draw(self, cells: Any, shape: Shape, top: int) -> Any:
        pods, bins, unit = shape
        names = list(reversed(pods))
        ticks = [(at, shorten(name)) for at, name in enumerate(names)] if len(pods) <= NAMED_PODS else []
        label = "blocks" if unit == 1 else f"blocks × {unit}"
        image = hv.Image(cells, bounds=(0, -0.5, bins, len(pods) - 0.5), kdims=["bucket", "row"], vdims=["blocks"])
        handles = self._handles

        def drawn(plot: Any, _: object) -> None:
            handles.update({name: plot.handles[name] for name in ("source", "color_mapper")})

        return image.opts(
            cmap=map_palette(self._theme),
            clim=(0, _high(top)),
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
            hooks=[drawn],
        )


def _high(top: int) -> int:
    """The colour scale's end in bytes of a cell."""
    return -(-top // -(-top // 255))


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
