"""A container of a Pod as a program to run: environment, options, port, probes, grace. Pure.

Left out, since no simulator has a use for it: volumes, resources, security context, init containers (reported by `plan`), probes
by exec and gRPC, preStop hooks other than a sleep.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from backend.core.errors import PermanentError
from backend.localkube.kubelet.images import Image, options
from backend.localkube.kubelet.store import Json
from backend.localkube.runtime.model import PodSpec, Probe, Probes
from backend.localkube.runtime.record import MODEL_LABEL

ROLE_LABEL = "role-name"
PORT_LABEL = "model.aibrix.ai/port"
ROLESET_LABEL = "roleset-name"
ROLES = ("prefill", "decode")
READINESS = Probe(period_s=1.0, timeout_s=5.0, failures=3)
"""For a container without a readiness probe: an engine is ready when its /health says so, not when its process exists.

SGLang generates a token before it answers, which takes a second."""
DEFAULT_GRACE_S = 30.0

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_SHELL_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_SLEEP = re.compile(r"\bsleep\s+(\d+(?:\.\d+)?)")
_OF_THE_IMAGE = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV"})
"""Variables that mean something in the image's file system, which is not here."""


class Unresolved(PermanentError):
    """The environment of a container names something that does not exist or that this node does not have."""


@dataclass(frozen=True)
class Context:
    """What a container can ask of its surroundings."""

    node: str
    host_ip: str
    pod_ip: str
    look_up: Callable[[str, str], Json | None] = lambda resource, name: None
    """A ConfigMap or Secret of the Pod's namespace, as (resource, name)."""


def pod_key(pod: Json) -> str:
    """Name of a Pod's address and the first part of its programs' names; also good as a file's name."""
    metadata = pod["metadata"]
    return f"{metadata['namespace']}_{metadata['name'][:80]}_{metadata['uid']}"


def container_key(pod: Json, container: str) -> str:
    """Name of a container's program; an underscore can be in none of the parts."""
    return f"{pod_key(pod)}_{container}"


def spec(pod: Json, container: Json, image: Image, context: Context) -> PodSpec:
    """The program of `container`. Raises Unresolved."""
    labels = pod["metadata"].get("labels") or {}
    env = environment(pod, container, context)
    told = options(image.rule, _words(container, env))
    port = told.port or _number(labels.get(PORT_LABEL)) or _http_port(container)
    role = labels.get(ROLE_LABEL, "")
    return PodSpec(
        name=container_key(pod, container["name"]),
        pod=pod_key(pod),
        engine=image.rule.engine,
        version=image.version,
        image=image.reference,
        command=image.rule.command,
        model=told.model or labels.get(MODEL_LABEL, ""),
        role=told.role or (role if role in ROLES else ""),
        roleset=labels.get(ROLESET_LABEL, ""),
        args={**told.args, **image.extra},
        env={name: value for name, value in env.items() if name not in _OF_THE_IMAGE and not name.startswith("WORKBENCH_")},
        port=port,
        probes=_probes(container, port),
        startup_s=0.0,
        grace_s=float(pod["spec"].get("terminationGracePeriodSeconds") or DEFAULT_GRACE_S),
        leave_s=_pre_stop(container),
        restart=pod["spec"].get("restartPolicy") or "Always",
    )


def environment(pod: Json, container: Json, context: Context) -> dict[str, str]:
    """Variables of a container in their order, references resolved. Raises Unresolved."""
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for resource, field in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if field in source:
                prefix = source.get("prefix", "")
                env |= {prefix + key: value for key, value in _data(resource, source[field], context).items()}
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = _value_from(pod, entry["valueFrom"], context)
            if value is not None:
                env[entry["name"]] = value
        else:
            env[entry["name"]] = expand(entry.get("value") or "", env)
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` by its value where there is one, `$$` by `$`, as Kubernetes does."""
    return _REFERENCE.sub(lambda found: "$" if found[1] == "$" else env.get(found[2], found[0]), text)


def unsupported(container: Json) -> Iterator[str]:
    """What of `container` this node accepts and does not do, as sentences."""
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(name)
        if probe and "httpGet" not in probe and "tcpSocket" not in probe:
            instead = "/health is asked instead" if name == "readinessProbe" else "nothing is asked"
            yield f"{name} of container {container['name']}: only httpGet and tcpSocket are known here, {instead}."
    if (container.get("lifecycle") or {}).get("preStop") and _pre_stop(container) is None:
        yield f"preStop of container {container['name']}: only a sleep is known here, it is left out."


def _value_from(pod: Json, source: Json, context: Context) -> str | None:
    """None: optional, and not there."""
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"].get("fieldPath", ""), context)
    for resource, field in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
        if field in source:
            data, key = _data(resource, source[field], context), source[field]["key"]
            if key not in data and not source[field].get("optional"):
                raise Unresolved(f"couldn't find key {key} in {resource[:-1]} {source[field].get('name')}")
            return data.get(key)
    raise Unresolved(f"valueFrom.{next(iter(source), '')} is not known to this node", fix="Use fieldRef, configMapKeyRef or secretKeyRef.")


def _field(pod: Json, path: str, context: Context) -> str:
    metadata = pod["metadata"]
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": context.node,
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName") or "default",
        "status.podIP": context.pod_ip,
        "status.podIPs": context.pod_ip,
        "status.hostIP": context.host_ip,
        "status.hostIPs": context.host_ip,
    }
    if path in known:
        return str(known[path])
    keyed = _KEYED.fullmatch(path)
    if keyed is None:
        raise Unresolved(f"fieldPath {path!r} is not known to this node", fix=f"Known: {', '.join(known)}, labels and annotations by key.")
    return str((metadata.get(keyed[1]) or {}).get(keyed[2], ""))


def _data(resource: str, reference: Json, context: Context) -> dict[str, str]:
    name = reference.get("name") or ""
    found = context.look_up(resource, name)
    if found is None:
        if reference.get("optional"):
            return {}
        raise Unresolved(f'{resource[:-1]} "{name}" not found')
    data = found.get("data") or {}
    if resource == "secrets":
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    return dict(data)


def _words(container: Json, env: Mapping[str, str]) -> list[str]:
    """Command and arguments; of a shell's script, its words. Raises Unresolved."""
    words = [expand(word, env) for field in ("command", "args") for word in container.get(field) or []]
    script = next((at + 1 for at, word in enumerate(words[:-1]) if re.fullmatch(r"-[a-z]*c", word)), 0)
    if not script or PurePath(words[0]).name not in _SHELLS:
        return words
    text = words[script].replace("\\\n", " ")
    text = _SHELL_REFERENCE.sub(lambda found: env.get(found[1] or found[2], found[0]), text)
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise Unresolved(f"the script of container {container['name']} cannot be read: {error}") from error


def _probes(container: Json, port: int) -> Probes:
    def read(name: str) -> Probe | None:
        probe: Json | None = container.get(name)
        asked = (probe or {}).get("httpGet") or (probe or {}).get("tcpSocket")
        if probe is None or asked is None:
            return None
        number = _port(container, asked.get("port"))
        return Probe(
            path=(asked.get("path") or "/") if "httpGet" in probe else None,
            port=0 if number == port else number,
            period_s=float(probe.get("periodSeconds") or 10),
            timeout_s=float(probe.get("timeoutSeconds") or 1),
            initial_delay_s=float(probe.get("initialDelaySeconds") or 0),
            successes=int(probe.get("successThreshold") or 1),
            failures=int(probe.get("failureThreshold") or 3),
        )

    return Probes(readiness=read("readinessProbe") or READINESS, startup=read("startupProbe"), liveness=read("livenessProbe"))


def _http_port(container: Json) -> int:
    """The port that is called http, else the first; 0 without any."""
    ports = container.get("ports") or []
    named = next((entry["containerPort"] for entry in ports if entry.get("name") == "http"), 0)
    return int(named or next((entry["containerPort"] for entry in ports), 0))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _port(container: Json, port: Any) -> int:
    """A port by number or by name; 0 for a name that no port has."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    return next((entry["containerPort"] for entry in container.get("ports") or [] if entry.get("name") == port), 0)


def _pre_stop(container: Json) -> float | None:
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float(hook["sleep"].get("seconds") or 0)
    found = _SLEEP.search(" ".join((hook.get("exec") or {}).get("command") or []))
    return float(found[1]) if found else None
