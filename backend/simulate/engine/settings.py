"""What a simulated engine is started with. Names and defaults are vLLM's where vLLM has the option."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from backend.core.errors import UsageError
from backend.engines.cost import DEFAULT_PRESET
from backend.simulate.engine.dialect import Version, parse_version
from backend.simulate.engine.hashing import Algorithm
from backend.simulate.engine.model import CoreSettings
from backend.simulate.engine.publisher import PublisherSettings

Family = Literal["vllm", "sglang"]
Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """One engine process."""

    engine: Family = "vllm"
    role: Role = "both"
    """`prefill` and `decode` are one half of a pair and move KV between them."""
    connector: bool = False
    """Move KV also where `role` is `both` (vLLM's kv_both)."""
    model: str = "qwen3-8b"
    """Name that requests use."""
    model_root: str = ""
    """Path of its weights as /v1/models tells it; empty: the name."""
    version: str = "0.32.0"
    host: str = "127.0.0.1"
    port: int = 8000
    core: CoreSettings = field(default_factory=CoreSettings)
    preset: str = DEFAULT_PRESET
    """Step-time model, see `backend.engines.cost`."""
    speed: float = 1.0
    """Divides all step times; 10 makes the engine ten times as fast as the GPU that it stands for."""
    hash_seed: str | None = None
    """PYTHONHASHSEED of the engine; None: not set."""
    hash_algorithm: Algorithm = "sha256"
    byte_hashes: bool = False
    """Events carry whole 32-byte hashes instead of their low 64 bits."""
    tokenizer: Path | None = None
    kv_events: PublisherSettings | None = None
    shutdown_timeout_s: float = 0.0
    """Seconds that running requests get to finish after SIGTERM; 0: they are aborted."""
    keep_alive_s: float = 5.0
    """Idle connections are closed after this; the default is that of vLLM's web server (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""
    prompt_tokens_details: bool = True
    """Usage tells cached tokens."""
    server_load_tracking: bool = True
    """/load counts running requests; without it, it says 0."""
    transfer_port: int = 0
    """Where other engines fetch KV: vLLM's NIXL side channel, or SGLang's bootstrap server; 0: any free port."""
    handshake_timeout_s: float = 5.0
    """A decode gives up after so long when its prefill cannot be reached."""
    bootstrap_timeout_s: float = 300.0
    """How long each half of an SGLang pair waits for the other."""
    health_generates: bool = True
    """SGLang's /health waits for a token of its own, which takes a second."""

    @property
    def version_numbers(self) -> Version:
        return parse_version(self.version)

    @property
    def disaggregated(self) -> bool:
        """It moves KV to or from other engines."""
        return self.connector or self.role != "both"

    @property
    def fingerprint(self) -> str:
        """As vLLM's `system_fingerprint`: the version, and eight digits that the configuration decides."""
        return f"vllm-{self.version}-{sha256(repr(self).encode()).hexdigest()[:8]}"

    def check(self) -> None:
        """Refuse what vLLM refuses at start. Raises UsageError."""
        core = self.core
        if min(core.block_size, core.max_num_seqs, core.max_num_batched_tokens, core.max_model_len) < 1 or self.speed <= 0:
            raise UsageError("Block size, limits and speed must be greater than zero.")
        if core.num_blocks < 2:
            raise UsageError("At least two blocks are needed: one is the null block.", fix="Raise --num-blocks.")
        room = (core.num_blocks - 1) * core.block_size
        if core.max_model_len > room:
            raise UsageError(
                f"A request of {core.max_model_len} tokens would not fit into the KV cache of {room} tokens.",
                fix=f"Raise --num-blocks, or set --max-model-len to at most {room}.",
            )


def now_seconds() -> int:
    """Seconds since 1970, as answers carry them."""
    return int(time.time())
