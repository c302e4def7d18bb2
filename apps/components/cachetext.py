"""The cache page in words and small tables: summaries, empty and error states, the answer of a probe. Pure."""

from __future__ import annotations

from apps.components.text import count, escape, html_table, natural, percent, plural, state_box
from backend.api.cache import CacheMap, ProbeResult

SHARED_SHOWN = 12
PODS_SHOWN = 40

NO_EVENTS = state_box(
    "No KV events yet",
    "<span class='muted'>Engines need the ZMQ publisher on: <code>--kv-events-config</code> with <code>enable_kv_cache_events</code> and "
    "<code>publisher: zmq</code>. Blocks appear here with the first request that fills one.</span>",
)
NO_SOURCES = state_box(
    "No event sources",
    "<span class='muted'>The index follows no pod, or does not answer. Pods are followed as soon as they are ready; "
    "the Fleet page lists what stands in the way.</span>",
)


def waiting() -> str:
    return state_box("Waiting for the index", "<span class='muted'>The first map comes within a second of its answer.</span>", sign="…")


def summary(data: CacheMap | None, error: str) -> str:
    """The map in one sentence, or why there is none."""
    if data is None:
        return (
            state_box("The index does not answer", f"<span class='muted'>{escape(error)}. Trying again.</span>", kind="error", sign="✕")
            if error
            else waiting()
        )
    if not data.copies:
        return NO_EVENTS
    ratio = data.copies / data.distinct if data.distinct else 1.0
    sentence = (
        f"<b class='num'>{plural(len(data.pods), 'pod')}</b> hold <b class='num'>{count(data.copies)}</b> blocks, "
        f"<b class='num'>{count(data.distinct)}</b> of them distinct: on average a block is held <b class='num'>{ratio:.2f}</b> times "
        f"(duplicate ratio)."
    )
    if error or data.stale:
        why = escape(error or "its writer gives no sign of life")
        sentence += f" <span class='bad'>✕ The index is away ({why}); this is its last state.</span>"
    return f'<p class="sentence">{sentence}</p>'


def _away(error: str) -> str:
    return state_box("The index does not answer", f"<span class='muted'>{escape(error)}. Trying again.</span>", kind="error", sign="✕")


def by_pod(data: CacheMap) -> str:
    """The same data as the plot, as a table."""
    rows = []
    pods = sorted(zip(data.pods, data.totals, data.blocks, strict=True), key=lambda pod: natural(pod[0]))
    for name, total, cells in pods[:PODS_SHOWN]:
        filled = sum(cell > 0 for cell in cells)
        share = total / data.copies if data.copies else 0.0
        rows.append([escape(name), count(total), _bar(share, percent(share, 1)), f"{filled} of {data.bins}", count(max(cells, default=0))])
    more = f"<p class='muted'>and {plural(len(data.pods) - PODS_SHOWN, 'more pod')}</p>" if len(data.pods) > PODS_SHOWN else ""
    headers = [("Pod", "mono"), ("Blocks", "r"), ("Share of all", "r"), ("Buckets in use", "r"), ("Fullest bucket", "r")]
    return f'<div class="scroll">{html_table(headers, rows)}</div>{more}'


def shared(data: CacheMap) -> str:
    if not data.shared:
        return state_box(
            "Nothing is shared yet", "<span class='muted'>No block is held by two pods, and none has several continuations.</span>"
        )
    rows = [
        [
            f"<code>{escape(prefix.key[:16])}</code>",
            count(prefix.tokens),
            count(prefix.depth),
            count(prefix.children),
            f'<span title="{escape(", ".join(prefix.pods))}">{len(prefix.pods)} of {len(data.pods)}</span>',
        ]
        for prefix in data.shared[:SHARED_SHOWN]
    ]
    headers = [("Prefix", ""), ("Tokens", "r"), ("Depth, blocks", "r"), ("Continued by", "r"), ("Held by pods", "r")]
    return f'<div class="scroll">{html_table(headers, rows)}</div>'


def probe_answer(result: ProbeResult) -> str:
    """Which pod would match how much, best first."""
    note = "" if result.index_state == "live" else f" <span class='bad'>The index is {escape(result.index_state)}.</span>"
    heading = f"<p class='sentence'>{plural(result.tokens, 'token')} for {escape(result.model) or 'this model'}.{note}</p>"
    if not any(match.matched_tokens for match in result.matches):
        body = "<span class='muted'>The first request with this prompt will be computed in full, wherever it goes.</span>"
        return heading + state_box("No pod holds any of it", body)
    rows = [
        [escape(match.pod), count(match.matched_tokens), _bar(match.share, percent(match.share))] for match in result.matches[:SHARED_SHOWN]
    ]
    return heading + html_table([("Pod", "mono"), ("Cached tokens", "r"), ("Of the prompt", "r")], rows)


def probe_failed(reason: str) -> str:
    return state_box("The probe failed", f"<span class='muted'>{escape(reason)}</span>", kind="error", sign="✕")


def _bar(share: float, words: str) -> str:
    return f'<span class="cell"><i style="width:{min(1.0, share) * 100:.0f}%"></i><b>{words}</b></span>'
