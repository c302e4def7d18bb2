"""What `python -m apps` needs of a process' life: its settings, its log, and when to end. Apps reach core by this door only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from backend.core import config, logs
from backend.core.life import on_stop
from backend.core.settings import DashboardSettings, ListenSettings

__all__ = ["DashboardSettings", "ListenSettings", "configure_logs", "on_stop", "read_settings"]


def read_settings(file: Path | None, *, env: Mapping[str, str] | None = None) -> DashboardSettings:
    """Defaults, then `file`, then variables WORKBENCH__DASHBOARD__... . Raises ConfigError."""
    return config.load(DashboardSettings, file, env=os.environ if env is None else env, section="DASHBOARD")


def configure_logs() -> None:
    """Log to standard error as every process of the stack does; Bokeh's and Panel's chatter from warnings up."""
    import logging

    logs.configure("dashboard")
    for chatty in ("bokeh", "tornado.access", "tornado.application", "panel"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # One line for every page that is closed while a message is on its way to it.
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)
