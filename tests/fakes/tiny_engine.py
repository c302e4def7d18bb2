"""The smallest thing that can be a pod: answers /health, obeys SIGTERM, and misbehaves on demand. For tests of the pod runtime only.

`python -m tests.fakes.tiny_engine --host H --port N [--crash-after S] [--ignore-term] [--hang-file FILE] [--say TEXT] [--worker yes]`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

from backend.core import life


async def serve(given: argparse.Namespace) -> None:
    stopped = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if given.hang_file and given.hang_file.exists():
            await asyncio.sleep(60)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    print(given.say, flush=True)
    if given.worker:
        await asyncio.create_subprocess_exec("sleep", "60")  # as an engine starts a process a GPU; ended with our group
    server = await asyncio.start_server(answer, given.host, given.port)
    if given.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        life.watch_parent(lambda: os._exit(0))
    else:
        life.on_stop(stopped.set)
    if given.crash_after is not None:
        await asyncio.sleep(given.crash_after)
        print("tiny engine: out of memory (as told)", flush=True)
        os._exit(3)  # as a crash ends: nothing is tidied up, so nothing is said about a probe that was being answered
    await stopped.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--crash-after", type=float)
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--hang-file", type=Path)
    parser.add_argument("--worker")
    parser.add_argument("--say", default="tiny engine")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
