"""Looks through kubeconfig files before anything is asked of a cluster, so that what is wrong is said with file and field.

The merge rule is kubectl's: several files of `KUBECONFIG` are one, and the first that names something wins. Reading
credentials is left to the `kubernetes` package; this module only checks what it would trip over, and keeps what it leaves out.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from backend.core.errors import ConfigError

DEFAULT = "~/.kube/config"


@dataclass(frozen=True, slots=True)
class Choice:
    """What one context of the files says that is no secret. `impersonate` are headers."""

    files: tuple[Path, ...]
    context: str
    namespace: str
    token_in_file: bool
    exec_command: str
    impersonate: tuple[tuple[str, str], ...]

    @property
    def where(self) -> str:
        return os.pathsep.join(map(str, self.files))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A named entry of `clusters`, `users` or `contexts`, with the file that it stands in."""

    file: Path
    field: str
    value: Mapping[str, Any]

    def wrong(self, problem: str, field: str = "", fix: str = "") -> ConfigError:
        return ConfigError(problem, file=str(self.file), field=f"{self.field}.{field}" if field else self.field, fix=fix)

    def text(self, name: str, *, required: bool = False) -> str:
        value = self.value.get(name)
        if value is None or value == "":
            if required:
                raise self.wrong("is required", name)
            return ""
        if not isinstance(value, str):
            raise self.wrong(f"must be text, not {type(value).__name__}", name)
        return value


def files_of(path: Path | str | None, env: Mapping[str, str]) -> tuple[Path, ...]:
    """The files to read: the one given, else those of KUBECONFIG, else the default; those of no given path need not exist."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError("there is no such kubeconfig file", file=str(file), fix="Name another with --kubeconfig.")
        return (file,)
    named = [part for part in env.get("KUBECONFIG", "").split(os.pathsep) if part] or [DEFAULT]
    return tuple(file for part in named if (file := Path(part).expanduser()).is_file())


def choose(files: tuple[Path, ...], context: str | None) -> Choice:
    """Check everything that the context of that name (None: the current one) leads to. Raises ConfigError."""
    documents = [(file, _read(file)) for file in files]
    where = os.pathsep.join(map(str, files))
    name = context or next((str(document["current-context"]) for _, document in documents if document.get("current-context")), "")
    if not name:
        raise ConfigError("names no context", file=where, field="current-context", fix="Name one with --context.")
    chosen = _find(documents, "contexts", "context", name, where)
    cluster = _find(documents, "clusters", "cluster", chosen.text("cluster", required=True), where, asked_by=chosen, by="cluster")
    _check_cluster(cluster)
    user: _Entry | None = None
    if chosen.text("user"):
        user = _find(documents, "users", "user", chosen.text("user"), where, asked_by=chosen, by="user")
        _check_user(user)
    return Choice(
        files=files,
        context=name,
        namespace=chosen.text("namespace") or "default",
        token_in_file=bool(user and user.text("tokenFile")),
        exec_command=_exec_command(user) if user else "",
        impersonate=_impersonation(user) if user else (),
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not text", file=str(file)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not readable"
        # from None: the parser's own message quotes the line, which may hold a token
        raise ConfigError(f"is not YAML: {problem}", file=str(file), line=mark.line + 1 if mark else 0) from None
    if not isinstance(document, dict):
        raise ConfigError("is not a kubeconfig: its top level must be a mapping", file=str(file))
    for section in ("clusters", "users", "contexts"):
        if not isinstance(document.get(section) or [], list):
            raise ConfigError("must be a list", file=str(file), field=section)
    return document


def _find(
    documents: list[tuple[Path, Mapping[str, Any]]],
    section: str,
    inner: str,
    name: str,
    where: str,
    *,
    asked_by: _Entry | None = None,
    by: str = "",
) -> _Entry:
    known: list[str] = []
    for file, document in documents:
        for index, item in enumerate(document.get(section) or []):
            if not isinstance(item, dict) or not item.get("name"):
                raise ConfigError("is required", file=str(file), field=f"{section}[{index}].name")
            known.append(str(item["name"]))
            if item["name"] == name:
                value = item.get(inner)
                if not isinstance(value, dict):
                    raise ConfigError("must be a mapping", file=str(file), field=f"{section}[name={name}].{inner}")
                return _Entry(file, f"{section}[name={name}].{inner}", value)
    fix = f"Known there: {', '.join(known)}." if known else f"There are no {section} at all."
    if asked_by is not None:
        raise asked_by.wrong(f"names {name!r}, which is not among the {section}", by, fix)
    raise ConfigError(f"has no context {name!r}", file=where, field=section, fix=fix)


def _check_cluster(cluster: _Entry) -> None:
    server = cluster.text("server", required=True)
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise cluster.wrong("must be an address such as https://127.0.0.1:6443", "server")
    _check_material(cluster, "certificate-authority")


def _check_user(user: _Entry) -> None:
    certificate = _check_material(user, "client-certificate")
    key = _check_material(user, "client-key")
    if certificate != key:
        raise user.wrong("is required beside the other half of the pair", "client-key" if certificate else "client-certificate")
    user.text("token")
    if token_file := user.text("tokenFile"):
        _check_file(user, "tokenFile", token_file)


def _check_material(entry: _Entry, name: str) -> bool:
    """Whether `name` is given, in a file that exists or as base64."""
    if data := entry.text(f"{name}-data"):
        try:
            base64.b64decode(data, validate=False)
        except (binascii.Error, ValueError):
            raise entry.wrong("is not base64", f"{name}-data") from None
        return True
    if path := entry.text(name):
        _check_file(entry, name, path)
        return True
    return False


def _check_file(entry: _Entry, name: str, path: str) -> None:
    file = entry.file.parent / path
    if not os.access(file, os.R_OK):
        raise entry.wrong(f"the file {file} is not there or not readable", name)


def _exec_command(user: _Entry) -> str:
    plugin = user.value.get("exec")
    if plugin is None:
        return ""
    if not isinstance(plugin, dict) or not isinstance(plugin.get("command"), str) or not plugin["command"]:
        raise user.wrong("is required", "exec.command")
    if not plugin.get("apiVersion"):
        raise user.wrong("is required", "exec.apiVersion")
    command: str = plugin["command"]
    if shutil.which(command, path=None if os.sep not in command else str(user.file.parent)) is None and not Path(command).is_file():
        hint = plugin.get("installHint") or f"Install {command}, or put its folder into PATH."
        raise user.wrong(f"the credential plugin {command!r} is not installed", "exec.command", str(hint).strip())
    return command


def _impersonation(user: _Entry) -> tuple[tuple[str, str], ...]:
    """The headers of `as`, which the package that reads the credentials knows nothing of."""
    headers: list[tuple[str, str]] = []
    if name := user.text("as"):
        headers.append(("Impersonate-User", name))
    if uid := user.text("as-uid"):
        headers.append(("Impersonate-Uid", uid))
    headers += [("Impersonate-Group", str(group)) for group in user.value.get("as-groups") or []]
    for key, values in (user.value.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{key}", str(value)) for value in values]
    return tuple(headers)
