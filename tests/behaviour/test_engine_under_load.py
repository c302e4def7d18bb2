"""Many clients at once, clients that leave, a paused engine: what runs, what is freed, what is shown."""

import asyncio

import httpx

from backend.simulate.engine.model import CoreSettings
from tests.fakes.engines import SMALL, running_engine, until


def core_of(engine):
    return engine.server.driver.core


async def test_a_client_that_leaves_frees_its_blocks_and_counts_as_aborted():
    async with running_engine(speed=1.0) as engine:
        async with engine.client.stream("POST", "/v1/completions", json={"prompt": "a b c", "max_tokens": 400, "stream": True}) as stream:
            await anext(stream.aiter_lines())
            assert core_of(engine).blocks.used
        assert await until(lambda: core_of(engine).idle)
        assert core_of(engine).blocks.used == 0
        text = (await engine.client.get("/metrics")).text
    assert 'finished_reason="abort",model_name="tiny"} 1.0' in text


async def test_a_client_that_does_not_wait_for_a_whole_answer_is_aborted_too():
    async with running_engine(speed=1.0) as engine:
        _, writer = await asyncio.open_connection(engine.server.settings.host, engine.server.port)
        body = b'{"prompt":"a","max_tokens":400}'
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        assert await until(lambda: core_of(engine).running)
        writer.close()
        assert await until(lambda: core_of(engine).idle)


async def test_running_waiting_and_load_are_shown_while_they_last():
    async with running_engine(speed=1.0) as engine:
        tasks = [asyncio.create_task(engine.complete(prompt=[number] * 40, max_tokens=100)) for number in range(16)]
        assert await until(lambda: len(core_of(engine).running) == SMALL.max_num_seqs)
        text = (await engine.client.get("/metrics")).text
        load = (await engine.client.get("/load")).json()
        for task in tasks:
            task.cancel()
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 8.0' in text
    assert 'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 8.0' in text
    assert load == {"server_load": 16}


async def test_many_requests_in_a_cache_too_small_for_them_all_are_answered():
    tight = CoreSettings(block_size=32, num_blocks=20, max_model_len=512, max_num_seqs=8)
    async with running_engine(core=tight, speed=1000.0) as engine:
        answers = await asyncio.gather(*(engine.complete(prompt=[number] * 60, max_tokens=120) for number in range(12)))
        text = (await engine.client.get("/metrics")).text
        assert core_of(engine).blocks.used == 0
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {120}
    preempted = next(line for line in text.splitlines() if line.startswith("vllm:num_preemptions_total"))
    assert float(preempted.split()[-1]) > 0


async def test_a_paused_engine_aborts_what_runs_and_keeps_what_comes_until_it_resumes():
    async with running_engine(speed=1.0) as engine:
        running = asyncio.create_task(engine.complete(prompt="a", max_tokens=400))
        assert await until(lambda: core_of(engine).running)
        assert (await engine.client.post("/pause")).json() == {"status": "paused"}
        assert (await running)["choices"][0]["finish_reason"] == "abort"
        waiting = asyncio.create_task(engine.complete(prompt="b", max_tokens=2))
        await asyncio.sleep(0.1)
        assert (await engine.client.get("/is_paused")).json() == {"is_paused": True}
        assert not waiting.done()
        await engine.client.post("/resume")
        assert (await waiting)["choices"][0]["finish_reason"] == "length"


async def test_pipelined_requests_on_one_connection_are_answered_in_order():
    async with running_engine() as engine:
        reader, writer = await asyncio.open_connection(engine.server.settings.host, engine.server.port)
        writer.write(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\nGET /load HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answers.index(b'{"version"') < answers.index(b'{"server_load"')


async def test_bytes_that_are_not_http_are_refused_and_the_engine_serves_on():
    async with running_engine() as engine:
        reader, writer = await asyncio.open_connection(engine.server.settings.host, engine.server.port)
        writer.write(b"\x00\x01garbage\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400")
        writer.close()
        assert (await engine.client.get("/health")).status_code == 200


async def test_a_chunked_body_is_read_as_one():
    async def parts():
        yield b'{"prompt":'
        yield b'[1,2,3],"max_tokens":1}'

    async with running_engine() as engine, httpx.AsyncClient(base_url=engine.url) as client:
        answer = await client.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert answer.json()["usage"]["prompt_tokens"] == 3


async def test_an_idle_connection_is_closed_after_the_keep_alive_and_a_busy_one_is_not():
    async with running_engine(keep_alive_s=0.2, speed=1.0) as engine:
        reader, writer = await asyncio.open_connection(engine.server.settings.host, engine.server.port)
        body = b'{"prompt":"a","max_tokens":60}'
        writer.write(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n")
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        everything = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert b'"finish_reason":"length"' in everything
