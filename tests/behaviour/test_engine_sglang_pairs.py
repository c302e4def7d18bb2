"""Two simulated SGLang that meet at a bootstrap server: who waits for whom, who answers, and what happens when one half is missing."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.fakes.engines import HOST, OTHER_HOST, free_ports, listening, running_engine, until

PROMPT = list(range(130))


@asynccontextmanager
async def pair(**more):
    settings = {"engine": "sglang", "version": "0.5.23", "health_generates": False, **more}
    async with (
        running_engine(role="prefill", **settings) as prefill,
        running_engine(role="decode", host=OTHER_HOST, **settings) as decode,
    ):
        yield prefill, decode


def meeting(prefill, room=7):
    return {"bootstrap_host": HOST, "bootstrap_port": prefill.server.connector.port, "bootstrap_room": room}


def ask(engine, body, path="/v1/completions"):
    return asyncio.create_task(engine.client.post(path, json=body))


def figure(text, name):
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"sglang:{name}{{"))


async def metric(engine, name):
    return figure((await engine.client.get("/metrics")).text, name)


FORMS = [
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello fox " * 30}], "max_tokens": 9}),
    ("/generate", {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 9}}),
]


@pytest.mark.parametrize(("path", "body"), FORMS, ids=["completion", "chat", "generate"])
@pytest.mark.parametrize("first", ["prefill", "decode"])
async def test_both_halves_get_the_same_body_and_the_decode_gives_the_whole_answer(path, body, first):
    async with pair() as (prefill, decode), running_engine(engine="sglang", version="0.5.23") as alone:
        expected = (await alone.client.post(path, json=body)).json()
        body = {**body, **meeting(prefill)}
        order = (prefill, decode) if first == "prefill" else (decode, prefill)
        early = ask(order[0], body, path)
        await asyncio.sleep(0.05)
        assert not early.done(), "one half alone waits"
        late = ask(order[1], body, path)
        answers = {id(order[0]): (await early).json(), id(order[1]): (await late).json()}
    given, begun = answers[id(decode)], answers[id(prefill)]
    part = (
        (lambda answer: answer["output_ids"])
        if path == "/generate"
        else (lambda answer: answer["choices"][0].get("text", answer["choices"][0].get("message")))
    )
    assert part(given) == part(expected)
    count = (lambda answer: answer["meta_info"]) if path == "/generate" else (lambda answer: answer["usage"])
    assert (count(begun)["completion_tokens"], count(given)["completion_tokens"]) == (1, 9)


async def test_a_stream_of_the_decode_has_every_token():
    async with pair() as (prefill, decode):
        body = {"prompt": PROMPT, "max_tokens": 5, **meeting(prefill)}
        other = ask(prefill, body)
        lines = await decode.stream("/v1/completions", **body)
        assert (await other).status_code == 200
    assert len(lines) == 6


async def test_many_rooms_at_once_keep_apart():
    async with pair() as (prefill, decode):
        bodies = [{"prompt": list(range(start, start + 70)), "max_tokens": 3, **meeting(prefill, start)} for start in range(20)]
        answers = await asyncio.gather(*(ask(engine, body) for body in bodies for engine in (prefill, decode)))
        assert {answer.status_code for answer in answers} == {200}
        assert [await metric(engine, "num_requests_total") for engine in (prefill, decode)] == [20, 20]
        assert prefill.server.driver.core.kv_usage == decode.server.driver.core.kv_usage == 0
        assert not prefill.server.connector._rooms


async def test_a_prefill_keeps_and_tells_its_cache_and_a_decode_keeps_none():
    async with pair(events=True) as (prefill, decode), listening(prefill) as told, listening(decode) as silent:
        for room in (1, 2):
            body = {"prompt": PROMPT, "max_tokens": 2, **meeting(prefill, room)}
            other = ask(prefill, body)
            answer = await decode.complete(**body)
        begun = (await other).json()
        await told.batches(1)
        assert await silent.silent()
    assert begun["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_half_without_a_room_is_refused(role):
    async with running_engine(engine="sglang", version="0.5.23", role=role) as engine:
        answer = await engine.client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 400
    assert "without bootstrap room id" in answer.json()["message"]


@pytest.mark.parametrize(
    "changed", [{"bootstrap_room": "x"}, {"bootstrap_port": "x"}, {"bootstrap_host": 1}], ids=lambda value: next(iter(value))
)
async def test_a_meeting_that_is_no_meeting_is_refused(changed):
    async with pair() as (prefill, decode):
        answer = await decode.client.post("/v1/completions", json={"prompt": "a", **meeting(prefill), **changed})
    assert (answer.status_code, answer.json()["object"]) == (400, "error")


async def test_a_whole_engine_ignores_the_meeting():
    async with running_engine(engine="sglang", version="0.5.23") as engine:
        await engine.complete(prompt=PROMPT, max_tokens=1, bootstrap_host="nowhere", bootstrap_port=1, bootstrap_room=1)


async def test_a_decode_whose_prefill_is_nowhere_fails_and_goes_on():
    async with pair(handshake_timeout_s=0.2) as (prefill, decode):
        body = {"prompt": PROMPT, **meeting(prefill), "bootstrap_port": free_ports(1)[0]}
        answer = await decode.client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["code"]) == (500, 500)
        assert await metric(decode, "num_transfer_failed_reqs_total") == 1
        assert decode.server.driver.core.kv_usage == 0


@pytest.mark.parametrize("lonely", ["prefill", "decode"])
async def test_a_half_whose_partner_never_comes_gives_up(lonely):
    async with pair(bootstrap_timeout_s=0.3) as (prefill, decode):
        engine = prefill if lonely == "prefill" else decode
        waiting = ask(engine, {"prompt": PROMPT, **meeting(prefill)})
        if lonely == "prefill":
            await until(lambda: prefill.server.connector._rooms)
            assert await metric(prefill, "num_prefill_bootstrap_queue_reqs") == 1
        answer = await waiting
        assert answer.status_code == 500
        assert await metric(prefill, "num_prefill_bootstrap_queue_reqs") == 0
        assert engine.server.driver.core.kv_usage == 0


@pytest.mark.parametrize("leaver", ["prefill", "decode"])
async def test_when_one_client_leaves_the_other_half_ends_with_an_error(leaver):
    async with pair(speed=0.01, preset="cpu-tiny") as (prefill, decode):
        body = {"prompt": list(range(10)), "max_tokens": 50, **meeting(prefill)}
        asked = {"prefill": ask(prefill, body), "decode": ask(decode, body)}
        assert await until(lambda: prefill.server.driver.core.running)
        asked.pop(leaver).cancel()
        (left,) = asked.values()
        assert (await left).status_code == 500
        assert await until(lambda: prefill.server.driver.core.kv_usage == decode.server.driver.core.kv_usage == 0)


async def test_a_room_has_one_prefill():
    async with pair() as (prefill, _):
        first = ask(prefill, {"prompt": PROMPT, **meeting(prefill)})
        assert await until(lambda: prefill.server.connector._rooms)
        assert (await prefill.client.post("/v1/completions", json={"prompt": PROMPT, **meeting(prefill)})).status_code == 400
        first.cancel()


async def test_an_engine_that_ends_while_a_half_waits_answers_it():
    async with pair() as (prefill, _):
        waiting = ask(prefill, {"prompt": PROMPT, **meeting(prefill)})
        assert await until(lambda: prefill.server.connector._rooms)
        prefill.server.stop()
        await prefill.server.run()
        answer = await waiting
    assert answer.json()["choices"][0]["finish_reason"] == "abort"


async def test_the_bootstrap_server_tells_where_the_rank_is_and_what_the_prefill_is():
    async with pair() as (prefill, _), httpx.AsyncClient(base_url=f"http://{HOST}:{prefill.server.connector.port}") as client:
        port = prefill.server.connector.port
        assert (await client.get("/health")).text == "OK"
        rank = (await client.get("/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0")).json()
        kind = (await client.get("/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1")).json()
        assert (await client.get("/nope")).status_code == 404
        info = (await prefill.client.get("/server_info")).json()
    assert rank["rank_ip"] == HOST
    assert (kind["dp_size"], kind["page_size"]) == (1, 32)
    assert (info["disaggregation_mode"], info["disaggregation_bootstrap_port"]) == ("prefill", port)
