"""The typed way to a control API, for programs that follow one themselves, such as the dashboard. Not needed in notebooks."""

from __future__ import annotations

from workbench._transport import Params, Transport

__all__ = ["Params", "Transport"]
