"""The fleet file: which pods should run, as YAML. Every complaint names line and field.

    pods:
      - name: vllm-{i}          # {i} counts the replicas from 0; needed when there are several
        replicas: 4
        engine: vllm            # a row of the engine table
        version: 0.32.0
        model: qwen3-8b         # the only field without a default, beside `name`
        role: prefill           # or decode; leave out for both
        roleset: ""
        labels: {tier: gold}
        args: {block-size: 64}  # flags of the engine; true stands alone, false leaves out
        env: {}
        grace: 5s               # SIGTERM to SIGKILL
        startup: 10m            # patience until the first readiness

Read through YAML's node tree: scalars stay as written (a version 0.10 stays "0.10") and each knows its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from backend.core.errors import ConfigError
from backend.localkube.runtime.model import PodSpec

SAMPLE = Path(__file__).parent.parent / "manifests" / "fleet.yaml"
"""What runs when nobody names a file."""

FIELDS = ("name", "replicas", "engine", "version", "model", "role", "roleset", "labels", "args", "env", "grace", "startup")
ROLES = ("", "prefill", "decode")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_DURATION = re.compile(r"([0-9.]+)\s*(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_MOST_REPLICAS = 250


def read(file: Path) -> list[PodSpec]:
    """Pods of `file`, replicas unfolded. Raises ConfigError."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(file)) from error
    return parse(text, file=str(file))


def parse(text: str, *, file: str = "fleet") -> list[PodSpec]:
    """Pods of a fleet file's text. Raises ConfigError."""
    return list(_Reader(file).pods(text))


class _Reader:
    """Knows the file's name, so that helpers need not pass it along."""

    def __init__(self, file: str) -> None:
        self.file = file

    def wrong(self, node: yaml.Node | None, field: str, message: str, fix: str = "") -> ConfigError:
        line = node.start_mark.line + 1 if node is not None else 0
        return ConfigError(message, file=self.file, line=line, field=field, fix=fix)

    def pods(self, text: str) -> Iterator[PodSpec]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigError(f"is not YAML: {problem}", file=self.file, line=mark.line + 1 if mark else 0) from error
        if root is None:
            raise ConfigError("is empty", file=self.file, fix="It needs a list `pods`.")
        top = self.mapping(root, "", known=("pods",))
        if "pods" not in top:
            raise self.wrong(root, "pods", "is required")
        items = top["pods"]
        if not isinstance(items, yaml.SequenceNode):
            raise self.wrong(items, "pods", "must be a list")
        seen: dict[str, str] = {}
        for index, item in enumerate(items.value):
            field = f"pods[{index}]"
            for spec in self.template(item, field):
                if spec.name in seen:
                    raise self.wrong(item, f"{field}.name", f"{spec.name!r} is a pod of {seen[spec.name]} already")
                seen[spec.name] = field
                yield spec

    def template(self, node: yaml.Node, field: str) -> Iterator[PodSpec]:
        values = self.mapping(node, field, known=FIELDS)
        for required in ("name", "model"):
            if required not in values:
                raise self.wrong(node, f"{field}.{required}", "is required")

        def text(name: str, default: str = "") -> str:
            return self.scalar(values[name], f"{field}.{name}") if name in values else default

        def table(name: str) -> dict[str, str]:
            if name not in values:
                return {}
            inner = self.mapping(values[name], f"{field}.{name}")
            return {key: self.scalar(value, f"{field}.{name}.{key}") for key, value in inner.items()}

        replicas = self.count(values.get("replicas"), f"{field}.replicas")
        pattern = text("name")
        if replicas > 1 and "{i}" not in pattern:
            raise self.wrong(values["name"], f"{field}.name", "needs {i} since there are several replicas", f"Such as `{pattern}-{{i}}`.")
        if text("role") not in ROLES:
            raise self.wrong(values["role"], f"{field}.role", f"is {text('role')!r}", "Choose prefill or decode, or leave it out for both.")
        grace = self.seconds(values["grace"], f"{field}.grace") if "grace" in values else None
        startup = self.seconds(values["startup"], f"{field}.startup") if "startup" in values else 600.0
        for index in range(replicas):
            name = pattern.replace("{i}", str(index))
            if not _NAME.fullmatch(name):
                hint = "Lower-case letters, digits, `-` and `.`, at most 63, as in Kubernetes."
                raise self.wrong(values["name"], f"{field}.name", f"{name!r} cannot be a pod's name", hint)
            yield PodSpec(
                name=name,
                engine=text("engine", "vllm"),
                version=text("version"),
                model=text("model"),
                role=text("role"),
                roleset=text("roleset"),
                labels=table("labels"),
                args=table("args"),
                env=table("env"),
                grace_s=grace,
                startup_s=startup,
            )

    def mapping(self, node: yaml.Node, field: str, *, known: tuple[str, ...] = ()) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, field, "must be a table of `name: value`")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.scalar(key, field)
            path = f"{field}.{name}" if field else name
            if known and name not in known:
                raise self.wrong(key, path, "no such field", f"Known here: {', '.join(known)}.")
            if name in values:
                raise self.wrong(key, path, "is there twice")
            values[name] = value
        return values

    def scalar(self, node: yaml.Node, field: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.wrong(node, field, "must be a single value")
        if node.tag == "tag:yaml.org,2002:null":
            return ""
        return str(node.value)

    def count(self, node: yaml.Node | None, field: str) -> int:
        if node is None:
            return 1
        value = self.scalar(node, field)
        if not value.isdigit() or int(value) > _MOST_REPLICAS:
            raise self.wrong(node, field, f"must be a whole number from 0 to {_MOST_REPLICAS}, not {value!r}")
        return int(value)

    def seconds(self, node: yaml.Node, field: str) -> float:
        value = self.scalar(node, field)
        found = _DURATION.fullmatch(value)
        if not found:
            raise self.wrong(node, field, f"must be a duration such as 5s, not {value!r}")
        return float(found[1]) * _SECONDS[found[2]]
