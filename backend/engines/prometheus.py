"""Figures out of a /metrics text by the spellings of one engine family. Pure; shared by the adapters."""

from __future__ import annotations

from backend.engines.base import MetricNames


class LoadParser:
    """Made once a family: which samples to look for, and whether a figure's lines are summed or averaged."""

    def __init__(self, metrics: MetricNames) -> None:
        self._wanted = [
            (key, [sample.encode() for sample in samples], field in MetricNames.MEANS)
            for field, spelled in metrics.spellings().items()
            for key, samples in _samples(field, spelled)
        ]

    def parse(self, text: bytes) -> dict[str, float]:
        """See `EngineAdapter.parse_load`."""
        figures: dict[str, float] = {}
        for key, samples, mean in self._wanted:
            for sample in samples:
                values = _values(text, sample)
                if values:
                    figures[key] = sum(values) / len(values) if mean else sum(values)
                    break
        return figures


def _samples(field: str, spelled: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    if field not in MetricNames.HISTOGRAMS:
        return [(field, list(spelled))]
    return [(f"{field}_{part}", [f"{name}_{part}" for name in spelled]) for part in ("sum", "count")]


def _values(text: bytes, sample: bytes) -> list[float]:
    """Values of all lines of one sample name. A scan for the name beats parsing: a scrape is 50 KB, we want 20 lines of it."""
    values: list[float] = []
    at = 0 if text.startswith(sample) else text.find(b"\n" + sample) + 1
    while text.startswith(sample, at):
        end = text.find(b"\n", at)
        if end < 0:
            break  # a cut-off last line: its figure counts as missing
        if text[at + len(sample)] in b"{ ":
            values.append(float(text[text.rindex(b" ", at, end) + 1 : end]))
        elif values:
            break
        # Samples of one name stand together; before the first, a longer name with the same beginning may be in between.
        at = end + 1 if values else text.find(b"\n" + sample, end) + 1
        if at == 0:
            break
    return values
