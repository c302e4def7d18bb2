"""What operators import: `workbench.connect()` and the objects behind it.

    wb = workbench.connect()                  # the running stack of this folder, or one started for you
    wb.fleet.df()                             # pods and their load, a polars table
    wb.cache.map().plot()                     # what every pod has cached
    wb.cache.probe("You are a helpful ...")   # which pod holds how much of this prompt
    wb.router.decisions(limit=100).df()       # where requests went
    wb.router.explain("ID")                   # why one went there
    wb.reports.run("daily")                   # the last 24 hours as one page and tables

Importing this package loads neither plotting, tables nor HTTP: each comes with its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from workbench import errors

if TYPE_CHECKING:
    from pathlib import Path

    from backend.api.endpoints import Endpoints
    from workbench.client import Connecting
    from workbench.sync import Workbench

__all__ = ["connect", "errors"]
__version__ = "0.1.0"


@overload
def connect(target: str | Path | Endpoints | None = None, token: str | None = None, asynchronous: Literal[False] = False) -> Workbench: ...
@overload
def connect(target: str | Path | Endpoints | None = None, token: str | None = None, *, asynchronous: Literal[True]) -> Connecting: ...
def connect(target: str | Path | Endpoints | None = None, token: str | None = None, asynchronous: bool = False) -> Workbench | Connecting:
    """A workbench on a running stack.

    `target` is a control API's URL (with its `token`, else the variable WORKBENCH_TOKEN), a state folder, or nothing: then the
    folder in WORKBENCH_STATE, else the nearest `.workbench` from here upwards. If no stack runs there, one is started in the
    background and ended again by `close()`. With `asynchronous=True` the answer is awaited or entered with `async with`.

    Raises NotConnected when nobody answers, Unauthorized for a wrong token.

    >>> wb = workbench.connect(stack.url, token=stack.token)
    >>> wb.fleet.df().columns[:3]
    ['pod', 'state', 'model']
    >>> wb.close()
    """
    if asynchronous:
        from workbench.client import Connecting

        return Connecting(target, token)
    from workbench.sync import Workbench

    return Workbench.connect(target, token)
