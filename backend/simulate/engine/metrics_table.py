"""Which figures a vLLM of a given version shows on /metrics: names, labels, help, buckets, and the versions that have them.

Data only; `metrics` keeps the values and writes the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Version = tuple[int, ...]
FOREVER: Version = (10**6,)

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TRANSFER_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_POST_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_TRANSFER_BYTES = tuple(float(2 ** (10 + power)) for power in range(1, 25, 2))
_DESCRIPTORS = (10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 400.0, 1000.0, 2000.0, 4000.0, 10000.0, 20000.0, 50000.0)
_STEP_TOKENS = (1.0, *(float(2**power) for power in range(3, 15)))
_PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
HIGHR = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5), *(3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0))
HANDLER_SECONDS = (0.1, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric family. `label` and `values` are a label that stands beside `engine` and `model_name`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)
    buckets: tuple[float, ...] = ()
    since: Version = (0,)
    until: Version = FOREVER
    """First version without it."""
    by_engine: bool = True


def gauge(name: str, text: str, **more: Any) -> Family:
    return Family(name=name, kind="gauge", help=text, **more)


def counter(name: str, text: str, **more: Any) -> Family:
    return Family(name=f"{name}_total", kind="counter", help=text, **more)


def histogram(name: str, text: str, buckets: tuple[float, ...], **more: Any) -> Family:
    return Family(name=name, kind="histogram", help=text, buckets=buckets, **more)


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    steps: list[float] = []
    power = 1
    while power <= largest:
        steps += [float(digit * power) for digit in (1, 2, 5) if digit * power <= largest]
        power *= 10
    return tuple(steps)


_MFU = "(for Model Flops Utilization calculations)."
_KV_HELP = "KV-cache usage. 1 means 100 percent usage."
_QUERIES_HELP = "Prefix cache queries, in terms of number of queried tokens."
_HITS_HELP = "Prefix cache hits, in terms of number of cached tokens."
_EXTERNAL = "from KV connector cross-instance cache sharing, in terms of number of"


def families(version: Version, max_model_len: int, *, connector: bool = False) -> list[Family]:
    """The families of `version`, in the order in which it writes them; with a KV connector, what that counts too."""
    tokens = one_two_five(max_model_len)
    listed = [*_gauges(), *_counters(), *_token_histograms(tokens), *_time_histograms(), *_late_histograms(tokens)]
    if connector:
        listed += _connector()
    return [family for family in listed if family.since <= version < family.until]


def _gauges() -> list[Family]:
    return [
        counter("estimated_flops_per_gpu", f"Estimated number of floating point operations per GPU {_MFU}", since=(0, 15)),
        counter("estimated_read_bytes_per_gpu", f"Estimated number of bytes read from memory per GPU {_MFU}", since=(0, 15)),
        counter("estimated_write_bytes_per_gpu", f"Estimated number of bytes written to memory per GPU {_MFU}", since=(0, 15)),
        gauge("num_requests_running", "Number of requests in model execution batches."),
        gauge("num_requests_waiting", "Number of requests waiting to be processed."),
        gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred"
            " by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
            label="reason",
            values=("capacity", "deferred"),
            since=(0, 20, 2),
        ),
        gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means"
            " sleep level 1; discard_all = 1 means sleep level 2.",
            label="sleep_state",
            values=("awake", "weights_offloaded", "discard_all"),
            since=(0, 11, 2),
        ),
        gauge("kv_cache_usage_perc", _KV_HELP, since=(0, 9)),
        gauge("gpu_cache_usage_perc", f"GPU {_KV_HELP}", until=(0, 12)),
    ]


def _counters() -> list[Family]:
    return [
        counter("prefix_cache_queries", _QUERIES_HELP, since=(0, 9)),
        counter("prefix_cache_hits", _HITS_HELP, since=(0, 9)),
        counter("gpu_prefix_cache_queries", f"GPU {_QUERIES_HELP}", until=(0, 12)),
        counter("gpu_prefix_cache_hits", f"GPU {_HITS_HELP}", until=(0, 12)),
        counter("external_prefix_cache_queries", f"External prefix cache queries {_EXTERNAL} queried tokens.", since=(0, 11, 2)),
        counter("external_prefix_cache_hits", f"External prefix cache hits {_EXTERNAL} cached tokens.", since=(0, 11, 2)),
        counter("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", since=(0, 11)),
        counter("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", since=(0, 11)),
        counter("num_preemptions", "Cumulative number of preemption from the engine."),
        counter("prompt_tokens", "Number of prefill tokens processed."),
        counter(
            "prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            label="source",
            values=("local_compute", "local_cache_hit", "external_kv_transfer"),
            since=(0, 16),
        ),
        counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", since=(0, 16)),
        counter(
            "prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk,"
            " p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to"
            " vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
            label="source",
            values=("device", "host", "p2p", "disk", "external_unspecified"),
            since=(0, 30),
        ),
        counter("generation_tokens", "Number of generation tokens processed."),
        counter(
            "request_success",
            "Count of successfully processed requests.",
            label="finished_reason",
            values=("stop", "length", "abort", "error", "repetition"),
        ),
        counter(
            "admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            label="reason",
            values=("max_num_queued_reqs", "max_num_queued_tokens"),
            since=(0, 30),
            by_engine=False,
        ),
    ]


def _token_histograms(tokens: tuple[float, ...]) -> list[Family]:
    return [
        histogram("request_prompt_tokens", "Number of prefill tokens processed.", tokens),
        histogram("request_generation_tokens", "Number of generation tokens processed.", tokens),
        histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", _STEP_TOKENS),
        histogram("request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", tokens),
        histogram("request_params_n", "Histogram of the n request parameter.", (1.0, 2.0, 5.0, 10.0, 20.0)),
        histogram("request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens),
    ]


def _time_histograms() -> list[Family]:
    per_token = "time_per_output_token_seconds"
    return [
        histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT),
        histogram(per_token, "Histogram of time per output token in seconds.", _ITL, until=(0, 15, 1)),
        histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _ITL, since=(0, 10, 2)),
        histogram(f"request_{per_token}", f"Histogram of {per_token} per request.", _ITL, since=(0, 11, 2)),
        histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _REQUEST),
        histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", _REQUEST),
        histogram("request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", _REQUEST),
        histogram("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", _REQUEST),
        histogram("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", _REQUEST),
    ]


def _late_histograms(tokens: tuple[float, ...]) -> list[Family]:
    computed = "Histogram of new KV tokens computed during prefill (excluding cached tokens)."
    times = "Histogram of the number of times a request was preempted."
    return [
        histogram("request_num_preemptions", times, _PREEMPTIONS, since=(0, 30)),
        histogram("request_prefill_kv_computed_tokens", computed, tokens, since=(0, 12)),
    ]


def _connector() -> list[Family]:
    """What NIXL counts; it came with the names of 0.11.2, expiry of notifications and stages later."""
    per = "per KV transfer of the NIXL connector."
    return [
        gauge(
            "num_requests_kv_fetch_by_stage",
            "Number of requests whose KV another instance computed, by stage of its transfer.",
            label="stage",
            values=("waiting_to_start", "in_progress", "completed_waiting"),
            since=(0, 30),
        ),
        histogram("nixl_xfer_time_seconds", f"Histogram of seconds {per}", _TRANSFER_S, since=(0, 11, 2)),
        histogram("nixl_post_time_seconds", f"Histogram of seconds of posting {per}", _POST_S, since=(0, 11, 2)),
        histogram("nixl_bytes_transferred", f"Histogram of bytes {per}", _TRANSFER_BYTES, since=(0, 11, 2)),
        histogram("nixl_num_descriptors", f"Histogram of descriptors {per}", _DESCRIPTORS, since=(0, 11, 2)),
        counter("nixl_num_failed_transfers", "Number of KV transfers that failed.", since=(0, 12)),
        counter("nixl_num_failed_notifications", "Number of notifications about KV transfers that failed.", since=(0, 12)),
        counter("nixl_num_kv_expired_reqs", "Number of requests whose KV was given up before anybody fetched it.", since=(0, 12)),
        counter("nixl_num_notifications_after_expiry", "Number of notifications about KV that was not there any more.", since=(0, 30)),
    ]


def cache_config(*, block_size: int, num_blocks: int, max_model_len: int, algorithm: str) -> Mapping[str, str]:
    """Labels of `cache_config_info` beside `engine`: what is true of a simulated GPU cache, and the defaults of the rest."""
    tokens = num_blocks * block_size
    return {
        **dict.fromkeys(_UNSET_CACHE_FIELDS, "None"),
        **dict.fromkeys(_OFF_CACHE_FIELDS, "False"),
        **dict.fromkeys(("_block_size_resolved", "enable_prefix_caching", "swa_bounded_replay", "user_specified_block_size"), "True"),
        **dict.fromkeys(("cache_dtype", "mamba_cache_dtype"), "auto"),
        "block_size": str(block_size),
        "effective_attention_block_size": str(block_size),
        "gpu_memory_utilization": "0.92",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_max_concurrency": str(tokens / max_model_len),
        "kv_cache_size_tokens": str(tokens),
        "kv_offloading_backend": "native",
        "mamba_cache_mode": "none",
        "mamba_ssm_cache_dtype": "float32",
        "num_gpu_blocks": str(num_blocks),
        "num_gpu_blocks_override": str(num_blocks),
        "prefix_cache_retention_interval": "0",
        "prefix_caching_hash_algo": algorithm,
        "replayssm_buffer_len": "16",
    }


_UNSET_CACHE_FIELDS = (
    *("cache_hit_alignment_tokens", "hash_block_size", "kv_cache_layout", "kv_cache_memory_bytes", "kv_offloading_size"),
    *("mamba_block_size", "mamba_page_size_padded", "num_cpu_blocks", "prefix_match_unit", "skip_page_size_padded", "sliding_window"),
)
_OFF_CACHE_FIELDS = (
    *("enable_mamba_shared_prefix_checkpoint", "is_attention_free", "kv_sharing_fast_prefill", "use_kda_recoverssm", "use_replayssm"),
)
