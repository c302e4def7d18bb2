"""Identifiers as types of their own, and how new ones are made."""

from __future__ import annotations

import os
from typing import NewType

PodName = NewType("PodName", str)
RequestId = NewType("RequestId", str)
ModelName = NewType("ModelName", str)


def new_id(prefix: str = "") -> str:
    """16 random hex digits behind `prefix`; unique enough for a day of requests of a fleet (64 bits)."""
    return prefix + os.urandom(8).hex()
