"""Why one request went where it went, told from its decision record: candidates with every score term, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from backend.api.decisions import DecisionRecord, PrefillChoice
from workbench import _show

if TYPE_CHECKING:
    import polars

_HIT_CLASSES = {
    "exact": "as predicted",
    "within_block": "within one block of the prediction",
    "raced": "other than predicted: somebody stored those blocks after the decision",
    "evicted": "other than predicted: the engine dropped blocks after the decision",
    "unknown": "other than predicted, and no event tells why",
    "unpredicted": "no prediction was made",
}


class Explanation(_show.Shown):
    """`.record` is the raw record, `.df()` the candidates with their terms, `.story()` the same in sentences.

    >>> explanation = stack.workbench.router.explain(stack.decision_id)
    >>> explanation.df().columns[:2]
    ['pod', 'chosen']
    """

    template: ClassVar[str] = "explanation.html.j2"

    def __init__(self, record: DecisionRecord) -> None:
        self.record = record

    def df(self) -> polars.DataFrame:
        """One row a candidate: `pod`, `chosen`, then one column a score term of this policy."""
        import polars as pl

        record = self.record
        data: dict[str, list[Any]] = {"pod": record.candidates, "chosen": [pod == record.chosen for pod in record.candidates]}
        schema: dict[str, Any] = {"pod": pl.String, "chosen": pl.Boolean}
        for name, values in record.terms.items():
            data[name] = list(values)
            schema[name] = pl.Float64
        return pl.DataFrame(data, schema=schema)

    def prefill_df(self) -> polars.DataFrame:
        """The same of the pods that could have computed the prompt; no rows where one pod did all."""
        import polars as pl

        prefill = self.record.prefill or PrefillChoice()
        columns = {"pod": prefill.candidates, "group": prefill.groups, "chosen": [pod == prefill.chosen for pod in prefill.candidates]}
        schema = {"pod": pl.String, "group": pl.String, "chosen": pl.Boolean, **dict.fromkeys(prefill.terms, pl.Float64)}
        return pl.DataFrame({**columns, **prefill.terms}, schema=schema, strict=False)

    def story(self) -> list[str]:
        """What was known, what was chosen, what became of it: one sentence each."""
        return [self._choice(), *self._prefill(), *self._prediction(), self._outcome()]

    def _choice(self) -> str:
        record = self.record
        if not record.chosen:
            return f"No pod was chosen: {record.error or record.reason or 'the request was refused'}."
        tried = f" after {', '.join(record.attempts)} failed before the first byte" if record.attempts else ""
        others = "1 other request" if record.in_flight == 1 else f"{record.in_flight or 'no'} other requests"
        return (
            f"Policy {record.policy or 'unknown'} chose {record.chosen} of {len(record.candidates)} candidates{tried}: "
            f"{record.reason or 'no reason recorded'}. Decided in {record.decide_ms:.2f} ms, "
            f"with {others} on that pod."
        )

    def _prefill(self) -> list[str]:
        """Where another pod computed the prompt."""
        prefill = self.record.prefill
        if prefill is None:
            return []
        tried = f" after {', '.join(prefill.attempts)} failed" if prefill.attempts else ""
        wait = f", in {prefill.wait_ms:,.0f} ms" if prefill.wait_ms is not None else ""
        error = f" ({prefill.error})" if prefill.error else ""
        return [f"{prefill.chosen} of {len(prefill.candidates)} computed the prompt{tried}{wait}{error}; both are of {prefill.group}."]

    def _prediction(self) -> list[str]:
        record = self.record
        lines = []
        if record.predicted_tokens is not None:
            prompt = f" of {record.prompt_tokens:,}" if record.prompt_tokens else ""
            blocks = f" (blocks of {record.block_size} tokens)" if record.block_size else ""
            lines.append(f"The index ({record.index_state}) promised a prefix hit of {record.predicted_tokens:,}{prompt} tokens{blocks}.")
        elif record.index_state != "live":
            lines.append(f"The index was {record.index_state}: nothing was promised.")
        if record.cached_tokens is not None:
            lines.append(f"The engine reported {record.cached_tokens:,} cached tokens: {_HIT_CLASSES[record.hit_class]}.")
        return lines

    def _outcome(self) -> str:
        record = self.record
        ttft = f", first token after {record.ttft_ms:,.0f} ms" if record.ttft_ms is not None else ""
        itl = f", {record.itl_ms:.1f} ms between tokens" if record.itl_ms is not None else ""
        tokens = f", {record.completion_tokens:,} tokens generated" if record.completion_tokens is not None else ""
        error = f" ({record.error})" if record.error else ""
        return f"Outcome {record.outcome}{error}, status {record.status}{ttft}{itl}{tokens}, {record.total_ms:,.0f} ms in all."

    def _table(self) -> tuple[list[str], list[list[object]]]:
        record = self.record
        headers = ["pod", *record.terms]
        rows: list[list[object]] = []
        for at, pod in enumerate(record.candidates):
            terms = [values[at] if at < len(values) else None for values in record.terms.values()]
            rows.append([f"{pod} ← chosen" if pod == record.chosen else pod, *terms])
        return headers, rows

    def __repr__(self) -> str:
        headers, rows = self._table()
        table = _show.text_table(headers, rows, limit=len(rows))
        return "\n".join([f"Request {self.record.id} for {self.record.model}", *(f"  {line}" for line in self.story()), table])

    def _facts(self) -> dict[str, Any]:
        headers, rows = self._table()
        marked = self.record.candidates.index(self.record.chosen) if self.record.chosen in self.record.candidates else None
        return {
            "title": f"Request {self.record.id}",
            "note": f"{self.record.model}, {_show.age(self.record.at)}",
            "story": self.story(),
            "headers": headers,
            "rows": rows,
            "marked": marked,
        }
