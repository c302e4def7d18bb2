"""polars tables for the parts of the plotting stack that want pandas. The only module that touches pandas.

`polars.DataFrame.to_pandas` needs pyarrow, which nothing else here needs; columns by way of lists cost milliseconds at the sizes
that people look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars


def to_pandas(frame: polars.DataFrame, *, index: str | None = None) -> Any:
    """A pandas table with the same columns; `index` names the column that becomes its index."""
    import pandas as pd

    table = pd.DataFrame({series.name: series.to_list() for series in frame}, columns=frame.columns)
    return table if index is None else table.set_index(index)
