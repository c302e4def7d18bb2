"""`python -m backend.simulate.engine`: one simulated engine as a process. Options are vLLM's where vLLM has them."""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from backend.core import logs
from backend.core.errors import UsageError, WorkbenchError
from backend.engines.cost import DEFAULT_PRESET, PRESETS
from backend.simulate.engine.dialect import parse_version
from backend.simulate.engine.hashing import ALGORITHMS
from backend.simulate.engine.model import CoreSettings
from backend.simulate.engine.nixl import lease_s
from backend.simulate.engine.publisher import PublisherSettings
from backend.simulate.engine.server import serve
from backend.simulate.engine.settings import EngineSettings

_CORE = CoreSettings()
_VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23"}


def read(arguments: Sequence[str]) -> tuple[EngineSettings, float]:
    """Settings and start-up delay in seconds from a command line, for engines that run in another process. Raises UsageError."""
    parser = _parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(f"The engine does not take these options: {error}") from error
    if unknown:
        raise UsageError(f"The engine has no option {unknown[0]!r}.")
    return _settings(options), options.startup_delay


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logs.configure("engine", level=options.log_level)
    try:
        settings = _settings(options)
        # What start-up made lives as long as the process: collections need not look at it again.
        gc.collect()
        gc.freeze()
        uvloop.run(serve(settings, startup_delay_s=options.startup_delay))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend.simulate.engine", description=__doc__)
    add = parser.add_argument
    add("--engine", choices=("vllm", "sglang"), default="vllm", help="engine family")
    add("--version", help=f"version whose event format, metrics and hashes are shown; default: {_VERSIONS}")
    add("--role", choices=("both", "prefill", "decode", ""), default="both", help="prefill and decode move KV between them")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0: any free one")
    add("--model", default="qwen3-8b", help="model name, or the path of its weights with --served-model-name")
    add("--served-model-name", default="", help="name that requests use, when it is not --model")
    _cache_options(parser)
    _event_options(parser)
    _transfer_options(parser)
    add("--preset", default=DEFAULT_PRESET, choices=sorted(PRESETS), help="step-time model of a model and GPU")
    add("--speed", type=float, default=1.0, help="factor on the speed of that GPU")
    add("--tokenizer", type=Path, help="tokenizer.json of a real model; without it the built-in one")
    add("--shutdown-timeout", type=float, metavar="S", help="seconds for running requests after SIGTERM; vLLM: 0, SGLang: no limit")
    add("--startup-delay", type=float, default=0.0, metavar="S", help="seconds before the port opens")
    keep_alive = float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5"))
    add("--timeout-keep-alive", type=float, default=keep_alive, metavar="S", help="seconds after which an idle connection is closed")
    add("--enable-prompt-tokens-details", action=argparse.BooleanOptionalAction, default=True, help="usage tells cached tokens")
    add("--enable-server-load-tracking", action=argparse.BooleanOptionalAction, default=True, help="/load counts")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


def _cache_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--block-size", "--page-size", type=int, default=_CORE.block_size, help="tokens a KV block")
    add("--num-blocks", type=int, default=_CORE.num_blocks, help="KV blocks, the null block among them")
    add("--max-num-seqs", type=int, default=_CORE.max_num_seqs, help="requests in a batch")
    add("--max-model-len", type=int, default=_CORE.max_model_len, help="tokens of prompt and answer together")
    add("--max-num-batched-tokens", type=int, default=_CORE.max_num_batched_tokens, help="tokens computed in one step")
    add("--hash-seed", default=os.environ.get("PYTHONHASHSEED"), help="seed of block hashes; default: PYTHONHASHSEED")
    add("--prefix-caching-hash-algo", choices=ALGORITHMS, default="sha256")


def _event_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    whole = os.environ.get("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "1") == "0"
    add("--kv-events", metavar="ENDPOINT", help="publish KV events; binds on a wildcard or on --host itself, connects to any other host")
    add("--replay", metavar="ENDPOINT", help="answer replay requests there")
    add("--topic", default="", help="topic of KV events")
    add("--buffer-steps", type=int, default=PublisherSettings.buffer_steps, help="batches kept for replay")
    add("--byte-hashes", action=argparse.BooleanOptionalAction, default=whole, help="events carry 32-byte hashes")


def _transfer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kv-connector", choices=("none", "nixl"), default="none", help="nixl: vLLM moves KV in the role both too (kv_both)")
    side = int(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "0"))
    add("--side-channel-port", type=int, default=side, help="where decodes fetch KV from a vLLM; 0: any free port")
    add("--disaggregation-bootstrap-port", type=int, default=8998, help="where decodes meet an SGLang prefill; 0: any free port")
    add("--kv-lease-duration", type=float, metavar="S", help="seconds that a vLLM holds KV for a decode; default: as the version")
    generates = os.environ.get("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "1") not in ("0", "false", "False")
    add("--health-generates", action=argparse.BooleanOptionalAction, default=generates, help="SGLang's /health takes a second")


def _settings(options: argparse.Namespace) -> EngineSettings:
    if options.replay and not options.kv_events:
        raise UsageError("--replay needs --kv-events.", fix="Add --kv-events 'tcp://*:5557'.")
    sglang = options.engine == "sglang"
    version = options.version or _VERSIONS[options.engine]
    lease = options.kv_lease_duration if options.kv_lease_duration is not None else lease_s(parse_version(version))
    patience = options.shutdown_timeout if options.shutdown_timeout is not None else math.inf if sglang else 0.0
    settings = EngineSettings(
        engine=options.engine,
        role=options.role or "both",
        connector=options.kv_connector == "nixl",
        model=options.served_model_name or options.model,
        model_root=options.model,
        version=version,
        host=options.host,
        port=options.port,
        core=CoreSettings(
            block_size=options.block_size,
            num_blocks=options.num_blocks,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            lease_s=lease,
        ),
        preset=options.preset,
        speed=options.speed,
        hash_seed=None if options.hash_seed in (None, "", "random") else options.hash_seed,
        hash_algorithm=options.prefix_caching_hash_algo,
        byte_hashes=options.byte_hashes,
        tokenizer=options.tokenizer,
        kv_events=_events(options),
        shutdown_timeout_s=patience,
        keep_alive_s=options.timeout_keep_alive,
        prompt_tokens_details=options.enable_prompt_tokens_details,
        server_load_tracking=options.enable_server_load_tracking,
        transfer_port=options.disaggregation_bootstrap_port if sglang else options.side_channel_port,
        health_generates=options.health_generates,
    )
    settings.check()
    return settings


def _events(options: argparse.Namespace) -> PublisherSettings | None:
    if not options.kv_events:
        return None
    return PublisherSettings(
        endpoint=options.kv_events,
        replay_endpoint=options.replay,
        topic=options.topic,
        buffer_steps=options.buffer_steps,
        host=options.host,
    )


if __name__ == "__main__":
    sys.exit(main())
