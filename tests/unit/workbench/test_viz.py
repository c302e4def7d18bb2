"""Plots and the tables that feed them."""

from __future__ import annotations

import holoviews as hv
import polars as pl

from workbench.viz import frames


def test_the_cache_map_is_drawn_with_the_first_pod_on_top(wb):
    plot = wb.cache.map(bins=4).plot()
    figure = hv.renderer("bokeh").get_plot(plot).state
    assert "KV blocks held" in figure.title.text
    assert plot.dimension_values("blocks", flat=False)[-1].tolist() == [0, 1, 2, 3]
    assert sorted(figure.yaxis[0].ticker.ticks) == [0, 1]
    assert figure.yaxis[0].major_label_overrides == {0: "vllm-1", 1: "vllm-0"}


def test_a_map_of_no_pods_can_be_drawn(wb, fake):
    fake.snapshot.pods.clear()
    hv.renderer("bokeh").get_plot(wb.cache.map(bins=4).plot())


def test_tables_become_pandas_without_pyarrow():
    table = frames.to_pandas(pl.DataFrame({"pod": ["a", "b"], "blocks": [1, None], "pods": [["x"], []]}), index="pod")
    assert list(table.index) == ["a", "b"]
    assert table["blocks"].iloc[0] == 1
