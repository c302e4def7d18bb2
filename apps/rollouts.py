"""The Rollouts page for `panel serve apps/*.py`. Nothing is defined here: Panel wipes a script's names when a session ends."""

from apps.core import entry

entry.serve("rollouts")
