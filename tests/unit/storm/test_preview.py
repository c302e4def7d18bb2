"""The rollout foretold is the rollout that happens, and it says what it will cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backend.storm import names
from backend.storm.preview import Assumptions, Preview, preview
from tests.fakes.storm import PodRules, StormWorld, role, storm_service


def _preview(world: StormWorld, service: dict[str, Any], **assumed: Any) -> Preview:
    given = [world.cluster.list(resource) for resource in (names.ROLE_SETS, names.PODS, names.CONTROLLER_REVISIONS)]
    return preview(service, *given, world.cluster.now, assumptions=Assumptions(**assumed))


def _edited(world: StormWorld, image: str) -> dict[str, Any]:
    """The service as it would be after the edit, the world untouched."""
    twin = StormWorld(world.service)
    twin.set_image(image)
    return twin.service


CASES = {
    "pooled interleaved": storm_service(role("prefill", 4), role("decode", 2), in_place=True, order="Interleave"),
    "pooled sequential with surge": storm_service(role("prefill", 2, surge=1, unavailable=0), role("decode", 3), in_place=True),
    "pooled stateful": storm_service(role("prefill", 3, stateful=True), role("decode", 2, stateful=True), in_place=True, order="Parallel"),
    "replica mode": storm_service(role("prefill"), role("decode", 2), replicas=4, surge="25%", unavailable="25%"),
}


@pytest.mark.parametrize("service", CASES.values(), ids=CASES.keys())
def test_the_steps_foretold_are_the_steps_taken(service: dict[str, Any]) -> None:
    world = StormWorld(service, PodRules(start_s=3.0, end_s=2.0)).run()
    foretold = _preview(world, _edited(world, "engine:v2"), start_seconds=3.0, end_seconds=2.0)
    begin = len(world.log)
    world.set_image("engine:v2")
    world.run()
    taken = [(sign, role) for _, sign, kind, role, _ in world.log[begin:] if kind == "pod"]
    steps = [[("+", move.role) for move in step.pods_in] + [("-", move.role) for move in step.pods_out] for step in foretold.steps]
    assert sorted(move for step in steps for move in step) == sorted(taken)
    assert {role: capacity.worst for role, capacity in foretold.capacity.items()} == {
        role: world.low[role] for role in ("prefill", "decode")
    }
    assert {role: capacity.peak for role, capacity in foretold.capacity.items()} == {
        role: world.high[role] for role in ("prefill", "decode")
    }
    assert foretold.outcome == "complete"


def test_a_preview_tells_ratio_extra_pods_and_seconds() -> None:
    world = StormWorld(
        storm_service(role("prefill", 4, surge=1, unavailable=0), role("decode", 2), in_place=True, order="Interleave")
    ).run()
    foretold = _preview(world, _edited(world, "engine:v2"), start_s_by_role={"prefill": 60.0}, start_seconds=20.0)
    assert foretold.capacity["prefill"].worst == 4
    assert foretold.capacity["decode"].worst == 1
    assert foretold.extra_pods_at_peak == 1
    assert foretold.highest_prefill_per_decode == pytest.approx(4.0, abs=1.1)
    assert foretold.total_s > 4 * 60


def test_a_preview_of_nothing_has_no_steps_and_no_seconds() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    foretold = _preview(world, world.service)
    assert (foretold.steps, foretold.total_s, foretold.outcome) == ((), 0.0, "complete")


def test_a_preview_changes_nothing_that_it_was_given() -> None:
    world = StormWorld(storm_service(role("prefill", 2), in_place=True)).run()
    before = msgspec.json.encode(world.cluster.objects)
    _preview(world, _edited(world, "engine:v2"))
    assert msgspec.json.encode(world.cluster.objects) == before


def test_a_preview_of_a_service_that_is_refused_names_the_field() -> None:
    world = StormWorld(storm_service(role("prefill"))).run()
    service = {**world.service, "spec": {**world.service["spec"], "updateStrategy": {"maxSurge": "x"}}}
    foretold = _preview(world, service)
    assert foretold.outcome == "refused"
    assert [problem.path for problem in foretold.problems] == ["spec.updateStrategy.maxSurge"]


def test_a_paused_service_is_foretold_to_stand_still() -> None:
    world = StormWorld(storm_service(role("prefill", 2), in_place=True)).run()
    service = _edited(world, "engine:v2")
    service = {**service, "spec": {**service["spec"], "paused": True}}
    foretold = _preview(world, service)
    assert foretold.outcome == "stuck"
    assert "paused" in foretold.waiting[0]


def test_the_first_creation_is_previewed_from_nothing() -> None:
    foretold = preview(storm_service(role("prefill", 2), role("decode", 1)), [], [], [], 0.0, assumptions=Assumptions(start_seconds=5.0))
    assert foretold.outcome == "complete"
    assert {role: (item.before, item.after) for role, item in foretold.capacity.items()} == {"prefill": (0, 2), "decode": (0, 1)}
    assert foretold.total_s == pytest.approx(5.0, abs=0.2)
