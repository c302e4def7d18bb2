"""The cache map's plot: drawn once, then only its bytes change. Drawn by HoloViews and Bokeh, without a browser."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import panel as pn
import pytest

from apps.components.heatmap import HeatMap
from apps.core import shell
from backend.api.cache import CacheMap


def a_map(blocks: list[list[int]], pods: list[str]) -> CacheMap:
    total = sum(map(sum, blocks))
    return CacheMap(
        at=0.0, version=1, pods=pods, bins=len(blocks[0]), blocks=blocks, totals=[sum(row) for row in blocks], distinct=total, copies=total
    )


@pytest.fixture
def heat() -> Iterator[HeatMap]:
    shell.extension()
    yield HeatMap("light")
    pn.state.kill_all_servers()


def image_of(root: object) -> np.ndarray:
    """The bytes that the browser is given; its first row is the lowest."""
    from bokeh.models import GlyphRenderer

    return root.select_one({"type": GlyphRenderer}).data_source.data["image"][0]  # type: ignore[attr-defined, no-any-return]


def test_the_first_pod_is_the_top_row_and_names_sort_as_people_count(heat: HeatMap) -> None:
    heat.show(a_map([[5, 0], [1, 2]], ["vllm-10", "vllm-9"]))
    assert image_of(heat.pane.get_root()).tolist() == [[5, 0], [1, 2]]


def test_a_new_map_of_the_same_pods_changes_bytes_in_the_figure_that_is_there(heat: HeatMap) -> None:
    heat.show(a_map([[1, 2], [3, 4]], ["a", "b"]))
    root = heat.pane.get_root()
    drawn = heat.pane[0].object
    heat.show(a_map([[1, 2], [7, 4]], ["a", "b"]))
    assert heat.pane[0].object is drawn
    assert image_of(root).tolist() == [[7, 4], [1, 2]]
    assert image_of(root).dtype == np.uint8


def test_the_colour_scale_follows_what_outgrows_it(heat: HeatMap) -> None:
    heat.show(a_map([[1, 2]], ["a"]))
    root = heat.pane.get_root()
    heat.show(a_map([[1, 30]], ["a"]))
    from bokeh.models import LinearColorMapper

    assert root.select_one({"type": LinearColorMapper}).high == 32


def test_another_pod_is_another_figure(heat: HeatMap) -> None:
    heat.show(a_map([[1, 2]], ["a"]))
    root = heat.pane.get_root()
    drawn = heat.pane[0].object
    heat.show(a_map([[1, 2], [3, 4]], ["a", "b"]))
    assert heat.pane[0].object is not drawn
    assert image_of(heat.pane.get_root()).shape == (2, 2)
    assert root is not None


def test_more_than_255_blocks_a_bucket_are_told_in_steps(heat: HeatMap) -> None:
    heat.show(a_map([[1, 600]], ["a"]))
    assert image_of(heat.pane.get_root()).max() <= 255


def test_a_fleet_without_pods_shows_no_plot(heat: HeatMap) -> None:
    heat.show(CacheMap(at=0.0, version=1, pods=[], bins=4, blocks=[], totals=[], distinct=0, copies=0))
    assert not heat.pane.visible
