"""Colours and styles: of the frame, of what stands in shadow roots, and of plots. Both themes, nothing loaded from outside."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

Theme = Literal["light", "dark"]
COOKIE = "workbench_theme"


@cache
def asset(name: str) -> str:
    """The text of a file of `apps/assets`."""
    return resources.files("apps").joinpath("assets", name).read_text()


def theme_of(cookies: dict[str, str]) -> Theme:
    return "dark" if cookies.get(COOKIE) == "dark" else "light"


PLOT_TEXT = {"light": "#5b6875", "dark": "#9aa7b4"}
PLOT_GRID = {"light": "#dfe4ea", "dark": "#2b3641"}
ACCENT = {"light": "#0b62b5", "dark": "#6cb4f5"}
FAINT = {"light": "#b7c3cf", "dark": "#45525f"}


def bokeh_theme(theme: Theme) -> dict[str, object]:
    """Attributes for `bokeh.themes.Theme`: transparent, so that the card's own colour shows."""
    text, grid = PLOT_TEXT[theme], PLOT_GRID[theme]
    axis = {
        "axis_line_color": grid, "major_tick_line_color": grid, "minor_tick_line_color": None,
        "major_label_text_color": text, "axis_label_text_color": text, "major_label_text_font_size": "11px",
        "axis_label_text_font_size": "11px", "axis_label_text_font_style": "normal",
        "major_label_text_font": "sans-serif", "axis_label_text_font": "sans-serif",
    }  # fmt: skip
    return {
        "attrs": {
            "Plot": {"background_fill_color": None, "border_fill_color": None, "outline_line_color": grid},
            "Axis": axis,
            "Grid": {"grid_line_color": grid},
            "Title": {"text_color": text, "text_font_size": "12px"},
            "BaseColorBar": {
                "background_fill_color": None,
                "major_label_text_color": text,
                "title_text_color": text,
                "title_text_font_style": "normal",
                "title_text_font_size": "11px",
                "major_label_text_font_size": "11px",
                "major_tick_line_color": None,
                "bar_line_color": None,
            },
        }
    }


@cache
def map_palette(theme: Theme) -> list[str]:
    """Steps from "nothing" (the card's colour) to "much": viridis turned so that the strong end contrasts with the theme."""
    from bokeh.palettes import Viridis256

    ramp = list(Viridis256[40:]) if theme == "dark" else list(reversed(Viridis256[:236]))
    empty = "#1c242c" if theme == "dark" else "#f1f4f7"
    return [empty, *(ramp[round(step * (len(ramp) - 1) / 254)] for step in range(255))]
