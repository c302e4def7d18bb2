"""KV events over real ZeroMQ sockets: numbering, topics, replay in both framings, bind and connect, restart."""

import asyncio

import pytest

from backend.core.errors import EnvironmentProblem
from backend.simulate.engine.publisher import PublisherSettings
from tests.fakes.engines import HOST, OTHER_HOST, Listener, events_of, free_ports, listening, running_engine, until

END = b"\xff" * 8


def numbers(frames):
    return [int.from_bytes(frame, "big") for frame in frames]


async def test_batches_are_numbered_from_zero_behind_their_topic():
    wanted = PublisherSettings(endpoint="tcp://*:0", topic="kv@pod", host=HOST)
    async with running_engine(kv_events=wanted) as engine, listening(engine) as listener:
        for start in (0, 100):
            await engine.complete(prompt=list(range(start, start + 33)), max_tokens=1)
        batches = await listener.batches(2)
    assert [frames[0] for frames in batches] == [b"kv@pod"] * 2
    assert numbers(frames[1] for frames in batches) == [0, 1]
    assert all(len(frames[1]) == 8 for frames in batches)


@pytest.mark.parametrize(("version", "frames"), [("0.25.1", 3), ("0.26.0", 4)], ids=["without_topic", "with_topic"])
async def test_a_replay_gives_every_batch_from_a_number_on_and_an_end_marker(version, frames):
    async with running_engine(events=True, version=version) as engine, listening(engine) as listener:
        for start in range(4):
            await engine.complete(prompt=list(range(start * 100, start * 100 + 33)), max_tokens=1)
        live = await listener.batches(4)
        replayed = await listener.replay(engine.server.publisher.replay_endpoint, 2)
    assert {len(answer) for answer in replayed} == {frames}
    assert numbers(answer[-2] for answer in replayed[:-1]) == [2, 3]
    assert [answer[-1] for answer in replayed[:-1]] == [batch[-1] for batch in live[2:]]
    assert replayed[-1][-2:] == [END, b""]


async def test_a_replay_beyond_the_end_is_just_the_end_marker():
    async with running_engine(events=True) as engine, listening(engine) as listener:
        assert len(await listener.replay(engine.server.publisher.replay_endpoint, 7)) == 1


async def test_a_long_replay_is_complete_and_batches_fallen_out_of_the_buffer_are_gone():
    wanted = PublisherSettings(endpoint="tcp://*:0", replay_endpoint="tcp://*:0", host=HOST, buffer_steps=3000)
    async with running_engine(kv_events=wanted) as engine, listening(engine) as listener:
        for number in range(3100):
            engine.server.publisher.publish(number.to_bytes(4, "big"))
        first, second = await asyncio.gather(*(listener.replay(engine.server.publisher.replay_endpoint, 0) for _ in range(2)))
    assert numbers(answer[-2] for answer in first[:-1]) == list(range(100, 3100))
    assert first == second


async def test_an_engine_that_connects_is_heard_by_a_bound_subscriber():
    endpoint = f"tcp://{OTHER_HOST}:{free_ports(1, OTHER_HOST)[0]}"
    wanted = PublisherSettings(endpoint=endpoint, host=HOST)
    listener = Listener(endpoint, bind=True)
    async with running_engine(kv_events=wanted) as engine:
        heard = asyncio.create_task(listener.batches(1))  # a bound SUB subscribes only while somebody reads from it
        await asyncio.sleep(0.3)  # the connection takes a moment, and PUB drops what is sent before
        await engine.complete(prompt=list(range(33)), max_tokens=1)
        batch = (await heard)[0]
    listener.close()
    assert events_of(batch[-1])[0]["type"] == "BlockStored"


async def test_an_engine_binds_on_its_own_address_where_connecting_would_reach_nobody():
    wanted = PublisherSettings(endpoint=f"tcp://{HOST}:0", host=HOST)
    async with running_engine(kv_events=wanted) as engine, listening(engine) as listener:
        await engine.complete(prompt=list(range(33)), max_tokens=1)
        assert len(await listener.batches(1)) == 1


async def test_a_reset_is_silent_until_the_next_step():
    async with running_engine(events=True) as engine, listening(engine) as listener:
        assert (await engine.client.post("/reset_prefix_cache")).json() == {"success": True}
        assert await listener.silent()
        await engine.complete(prompt=list(range(33)), max_tokens=1)
        batch = (await listener.batches(1))[0]
    assert [event["type"] for event in events_of(batch[-1])] == ["AllBlocksCleared", "BlockStored"]


async def test_a_reset_is_refused_while_a_request_runs():
    async with running_engine(events=True, speed=1.0) as engine:
        running = asyncio.create_task(engine.complete(prompt=list(range(33)), max_tokens=50))
        assert await until(lambda: engine.server.driver.core.running)
        assert (await engine.client.post("/reset_prefix_cache")).json() == {"success": False}
        running.cancel()


async def test_salt_session_and_report_mode_reach_the_events():
    async with running_engine(events=True) as engine, listening(engine) as listener:
        body = {"prompt": list(range(70)), "max_tokens": 1, "cache_salt": "tenant-A"}
        await engine.complete(**body)
        again = {**body, "vllm_xargs": {"kv_cache_report_mode": "full"}}
        await engine.client.post("/v1/completions", json=again, headers={"X-Session-ID": "s-9"})
        first, second = [events_of(batch[-1])[0] for batch in await listener.batches(2)]
    assert first["extra_keys"] == [["tenant-A"], None]
    assert "session_id" not in first
    assert second["session_id"] == "s-9"
    assert second["block_hashes"] == first["block_hashes"]


async def test_two_engines_on_two_addresses_publish_on_the_same_port():
    (port,) = free_ports(1)
    first = PublisherSettings(endpoint=f"tcp://*:{port}", host=HOST)
    second = PublisherSettings(endpoint=f"tcp://*:{port}", host=OTHER_HOST)
    async with running_engine(kv_events=first), running_engine(kv_events=second, host=OTHER_HOST):
        with pytest.raises(EnvironmentProblem, match="KV events"):
            async with running_engine(kv_events=first):
                pass


async def test_garbage_on_the_replay_socket_is_ignored():
    import zmq
    import zmq.asyncio

    async with running_engine(events=True) as engine, listening(engine) as listener:
        context = zmq.asyncio.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.connect(engine.server.publisher.replay_endpoint)
        await dealer.send_multipart([b"what", b"is", b"this"])
        await dealer.send_multipart([b"", b"short"])
        assert len(await listener.replay(engine.server.publisher.replay_endpoint, 0)) == 1
        context.destroy(linger=0)
