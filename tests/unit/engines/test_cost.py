"""The step-time model against what was published for the hardware that it stands for."""

import pytest

from backend.core.errors import UsageError
from backend.engines.cost import PRESETS, StepCost, preset

H20 = preset("h20-qwen3-8b")


@pytest.mark.parametrize(
    ("kv_tokens", "prefill_tokens", "seconds"),
    [(0, 0, 0.0089), (2_000, 0, 0.00908), (475_000, 0, 0.0465), (8192, 8192, 1.05)],
    ids=["empty", "one_stream", "full_cache", "one_prefill_chunk"],
)
def test_an_h20_with_qwen3_8b_takes_the_published_times(kv_tokens, prefill_tokens, seconds):
    assert H20.seconds(kv_tokens, prefill_tokens) == pytest.approx(seconds, rel=0.03)


def test_time_grows_with_both_kinds_of_tokens():
    cost = StepCost(1.0, 0.5, 0.25)
    assert cost.seconds(2, 4) == 3.0


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="|".join(PRESETS)):
        preset("h1000")
