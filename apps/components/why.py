"""Why one request went to its pod: sentences, candidates with every score term, timings, promise against truth; and the plot."""

from __future__ import annotations

from typing import Any

from apps.components.text import count, escape, html_table, milliseconds, state_box
from apps.core.theme import ACCENT, FAINT, Theme, bokeh_theme
from backend.api.decisions import DecisionRecord, PrefillChoice
from workbench.explanation import Explanation

Choice = DecisionRecord | PrefillChoice
CANDIDATES_SHOWN = 20
PLOTTED_TERMS = 3

NOTHING_CHOSEN = state_box(
    "Choose a decision above", "<span class='muted'>Its candidates, score terms and timings appear here.</span>", sign="↑"
)


def story(record: DecisionRecord) -> str:
    """What was known, chosen and became of it, in sentences; then the facts."""
    sentences = " ".join(escape(sentence) for sentence in Explanation(record).story())
    return f'<p class="sentence">{sentences}</p><dl>{_facts(record)}</dl>'


def candidates(record: DecisionRecord) -> str:
    """A row a candidate, a column a score term; the chosen one is marked. Of a pair, both halves."""
    if not record.candidates:
        return state_box("No candidates", "<span class='muted'>The request was answered before a pod was looked for.</span>")
    if record.prefill is None or not record.prefill.candidates:
        return _table(record, "Candidate")
    return _table(record.prefill, "Candidate for prefill") + _table(record, "Candidate for decode")


def _table(choice: Choice, title: str) -> str:
    order = _order(choice)
    tops = {name: max((abs(value) for value in values), default=0.0) or 1.0 for name, values in choice.terms.items()}
    rows, classes = [], []
    for at in order:
        pod = choice.candidates[at]
        mark = "✓ " if pod == choice.chosen else ""
        tried = " <span class='warning'>▲ failed first</span>" if pod in choice.attempts else ""
        cells = [_cell(values[at] if at < len(values) else None, tops[name]) for name, values in choice.terms.items()]
        rows.append([f"{mark}{escape(pod)}{tried}", *cells])
        classes.append("chosen" if pod == choice.chosen else "")
    headers = [(title, "mono"), *((_words(name), "r") for name in choice.terms)]
    rest = len(choice.candidates) - len(order)
    more = f"<p class='muted'>and {rest} more candidates</p>" if rest > 0 else ""
    return f'<div class="scroll">{html_table(headers, rows, row_classes=classes)}</div>{more}'


def plot(record: DecisionRecord, theme: Theme) -> Any:
    """Bars of the first score terms, the chosen pod in the accent colour. None when the policy has no terms."""
    import holoviews as hv

    order = list(reversed(_order(record)))
    colours = {"chosen": ACCENT[theme], "not chosen": FAINT[theme]}
    plots = []
    for name, values in list(record.terms.items())[:PLOTTED_TERMS]:
        if len(values) != len(record.candidates):
            continue
        data = [
            (record.candidates[at], float(values[at]), "chosen" if record.candidates[at] == record.chosen else "not chosen") for at in order
        ]
        bars = hv.Bars(data, ["pod"], [name, "role"]).opts(
            color=hv.dim("role").categorize(colours),
            line_color=None,
            invert_axes=True,
            xlabel="",
            ylabel=_words(name),
            height=max(130, 60 + 20 * len(order)),
            responsive=True,
            toolbar=None,
            default_tools=[],
            tools=["hover"],
            show_legend=False,
            backend="bokeh",
        )
        plots.append(bars)
    return hv.Layout(plots).cols(PLOTTED_TERMS).opts(toolbar=None, shared_axes=False, backend="bokeh") if plots else None


def plot_theme(theme: Theme) -> Any:
    from bokeh.themes import Theme as BokehTheme

    return BokehTheme(json=bokeh_theme(theme))


def _order(choice: Choice) -> list[int]:
    """Positions of the candidates to show: the chosen one, then by the first term, largest first."""
    first = next(iter(choice.terms.values()), [])
    rank = {at: -(first[at] if at < len(first) else 0.0) for at in range(len(choice.candidates))}
    return sorted(rank, key=lambda at: (choice.candidates[at] != choice.chosen, rank[at], choice.candidates[at]))[:CANDIDATES_SHOWN]


def _cell(value: float | None, top: float) -> str:
    if value is None:
        return "–"
    words = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"
    return f'<span class="cell"><i style="width:{min(1.0, abs(value) / top) * 100:.0f}%"></i><b>{words}</b></span>'


def _words(term: str) -> str:
    return term.replace("_", " ")


def _facts(record: DecisionRecord) -> str:
    predicted = "no prediction" if record.predicted_tokens is None else f"{count(record.predicted_tokens)} tokens"
    cached = "not reported" if record.cached_tokens is None else f"{count(record.cached_tokens)} tokens"
    prompt = record.usage_prompt_tokens or record.prompt_tokens
    facts = {
        "Request": record.id,
        "Path": record.path + (" (stream)" if record.stream else ""),
        "User": record.user,
        "Predicted hit": predicted,
        "Real hit": cached,
        "Compared": record.hit_class.replace("_", " "),
        "Index": record.index_state,
        "Prompt": f"{count(prompt)} tokens" if prompt else "",
        "Completion": f"{count(record.completion_tokens)} tokens" if record.completion_tokens is not None else "",
        "Decided in": milliseconds(record.decide_ms),
        "Connected in": milliseconds(record.connect_ms),
        "TTFT": milliseconds(record.ttft_ms),
        "ITL, mean": milliseconds(record.itl_ms),
        "Total": milliseconds(record.total_ms),
        "Outcome": f"{record.outcome.replace('_', ' ')}, status {record.status or 'none'}",
        "Error": record.error,
        "Worker": str(record.worker),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
