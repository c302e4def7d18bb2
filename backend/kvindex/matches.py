"""What a look-up answers: pod name to matched tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class Matches(Mapping[str, int]):
    """Tokens of the prompt that each pod holds from its beginning on.

    Pods that hold something are listed, most first; every other name answers 0, as `collections.Counter` does.

    >>> Matches(("a", "b"), (0, 64))
    Matches(b=64)
    """

    __slots__ = ("_tokens",)

    def __init__(self, pods: Sequence[str], tokens: Sequence[int]) -> None:
        held = [(pod, count) for pod, count in zip(pods, tokens, strict=True) if count > 0]
        self._tokens = dict(sorted(held, key=lambda item: -item[1]))

    def __getitem__(self, pod: str) -> int:
        return self._tokens.get(pod, 0)

    def __contains__(self, pod: object) -> bool:
        return pod in self._tokens

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"Matches({', '.join(f'{pod}={tokens}' for pod, tokens in self._tokens.items())})"
