"""Every "Copy as Python" of the dashboard, in one table, so that a test can run each of them against a stack.

A snippet is what stands behind `wb = workbench.connect()`; names in braces are filled in by the page.
"""

from __future__ import annotations

CONNECT = "import workbench\n\nwb = workbench.connect()\n"

SNIPPETS: dict[str, str] = {
    "fleet": "wb.fleet.snapshot()",
    "pods": "wb.fleet.df()",
    "pod": "wb.fleet.pod({pod})",
    "findings": "wb.findings().df()",
    "cache-map": "wb.cache.map().plot()",
    "shared": "wb.cache.map().shared().df()",
    "sources": "wb.cache.sources().df()",
    "probe": "wb.cache.probe({prompt}).df()",
    "decisions": "wb.router.decisions(limit=100).df()",
    "explain": "wb.router.explain({request})",
    "services": "wb.services.df()",
    "plan-image": "wb.service({service}).plan_upgrade(image={image}, role={role})",
    "plan-scale": "wb.service({service}).plan_scale({replicas}, role={role})",
    "plan-pause": "wb.service({service}).plan_pause()",
    "plan-resume": "wb.service({service}).plan_resume()",
    "plan": "wb.plan({plan})",
    "operation": "wb.operation({operation})",
    "operations": "wb.operations().df()",
    "audit": "wb.audit().df()",
}

EXAMPLES: dict[str, str | int | None] = {
    "pod": "vllm-0",
    "prompt": "You are a helpful assistant.",
    "request": "ID",
    "service": "default/mistral",
    "image": "vllm/vllm-openai:v0.31.0",
    "role": None,
    "replicas": 1,
    "plan": "ID",
    "operation": "ID",
}
"""What stands in braces until the user chose something."""


def code(key: str, **values: str | int | None) -> str:
    """The snippet ready to run, with every value as a Python literal."""
    return CONNECT + SNIPPETS[key].format(**{name: repr(value) for name, value in {**EXAMPLES, **values}.items()})
