"""What runs for a container image: a table from references to command lines of simulators. Pure, but for reading the table.

A Pod is code that runs as the user, so nothing runs but what the table names: a Pod's own command and arguments are read for the
options that the simulator knows, never executed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml

from backend.core.errors import ConfigError

TABLE = Path(__file__).parent.parent.parent / "manifests" / "images.yaml"
"""The table that is used when nobody names another."""

_NUMBER = re.compile(r"v?(\d+(?:\.\d+)+)(?=$|[-.+])")
_LATEST = "latest"
_REMEMBERED = 1000


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the table; the file explains the fields."""

    repository: str
    engine: str
    version: str
    command: list[str]
    serve: list[str] = []
    flags: dict[str, str] = {}
    switches: dict[str, str] = {}
    roles: dict[str, str] = {}
    words: dict[str, dict[str, str]] = {}
    tags: dict[str, dict[str, str]] = {}


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    rules: list[Rule]


@dataclass(frozen=True)
class Image:
    """A reference that can run."""

    reference: str
    rule: Rule
    version: str
    extra: Mapping[str, str] = field(default_factory=dict)
    """Options that its tag adds."""

    @functools.cached_property
    def image_id(self) -> str:
        """Changes whenever something else would run. Not a digest of content: there is none."""
        content = msgspec.json.encode([self.reference, self.rule.command, dict(self.extra)])
        return f"{repository(self.reference)}@sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Options:
    """What a container's command and arguments say, in the simulator's words."""

    model: str = ""
    role: str = ""
    port: int = 0
    args: Mapping[str, str] = field(default_factory=dict)
    """Options of the simulator without their dashes; "true" stands alone, as in a fleet file."""


def repository(reference: str) -> str:
    """A reference without tag and digest."""
    return _split(reference)[0]


class Images:
    """The table, ready to be asked."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(re.compile(rule.repository), rule) for rule in rules]
        self._found: dict[str, Image | None] = {}

    @classmethod
    def read(cls, file: Path = TABLE) -> Images:
        """Raises ConfigError."""
        try:
            table = msgspec.convert(yaml.safe_load(file.read_text()), _Table, strict=False)
            return cls(table.rules)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(file)) from error
        except (yaml.YAMLError, msgspec.ValidationError, re.error) as error:
            raise ConfigError(f"is not a table of images: {error}", file=str(file)) from error

    def find(self, reference: str) -> Image | None:
        """What runs for `reference`; None when it cannot be pulled: no rule, or a tag that is neither a version nor named."""
        if reference not in self._found:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[reference] = self._look_up(reference)
        return self._found[reference]

    def _look_up(self, reference: str) -> Image | None:
        name, tag = _split(reference)
        rule = next((rule for pattern, rule in self._rules if pattern.fullmatch(name)), None)
        if rule is None:
            return None
        if tag in rule.tags:
            return Image(reference, rule, rule.version, rule.tags[tag])
        number = _NUMBER.match(tag)
        if number is None and tag != _LATEST:
            return None
        return Image(reference, rule, number[1] if number else rule.version)


def options(rule: Rule, words: Sequence[str]) -> Options:
    """Read a real engine's command line for what the simulator knows; everything else is accepted and left out."""
    model, role, port = "", "", 0
    args: dict[str, str] = {}
    for flag, value in _pairs(rule, words):
        ours = rule.flags.get(flag)
        for word, added in rule.words.items():
            if _says(value, word):
                args |= added
        if ours == "{model}":
            model = value
        elif ours == "{role}":
            role = next((known for word, known in rule.roles.items() if _says(value, word)), role)
        elif ours == "{port}":
            port = int(value) if value.isdigit() else port
        elif ours is not None and value:
            args[ours] = value
        elif flag in rule.switches and not value:
            args[rule.switches[flag]] = "true"
    return Options(model, role, port, args)


def _says(value: str, word: str) -> bool:
    return word in value and re.search(rf"\b{re.escape(word)}\b", value) is not None


def _pairs(rule: Rule, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags without dashes and with `_` as `-` (as the engines read them), each with its value; empty: it has none."""
    at = 0
    while at < len(words):
        word = words[at]
        following = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else ""
        at += 1
        if word in rule.serve:
            yield "model", following
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("_", "-")
            if not equals and name not in rule.switches:
                value, at = following, at + bool(following)
            yield name, value


def _split(reference: str) -> tuple[str, str]:
    """Repository and tag; a colon before the last slash belongs to the registry's port."""
    name = reference.partition("@")[0]
    slash, colon = name.rfind("/"), name.rfind(":")
    return (name[:colon], name[colon + 1 :]) if colon > slash else (name, _LATEST)
