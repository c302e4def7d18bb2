"""The simulated engine computes what it says: nothing of a recording stands in its source."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "engines"
SOURCES = [*(ROOT / "backend" / "simulate").rglob("*.py"), *(ROOT / "backend" / "engines").rglob("*.py")]


def recorded_values() -> set[str]:
    """What a recording has and no other engine would: hashes, ids, fingerprints, times, prompts, topics."""
    values: set[str] = set()
    for file in DATA.glob("kv_events/*.json"):
        for batch in json.loads(file.read_text())["batches"]:
            values.add(batch["topic"])
            for event in batch["decoded"][1]:
                values |= {str(digest) for digest in event.get("block_hashes", [])}
    for file in (*DATA.glob("http/*.json"), *DATA.glob("pd_nixl/*.json")):
        text = file.read_text()
        values |= set(re.findall(r"(?:cmpl|modelperm|vllm-[0-9.]+)-([0-9a-f]{8,16})", text)) | set(re.findall(r"17953\d{5}", text))
        values |= set(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", text)) | set(re.findall(r"remote_port[^0-9]{1,4}(\d+)", text))
    return values | {"quick brown fox", "hello fox", "You are a router"}


def test_no_hash_id_time_or_prompt_of_a_recording_is_in_the_source():
    values = recorded_values()
    assert len(values) > 40
    source = "\n".join(path.read_text() for path in SOURCES)
    assert [value for value in values if value in source] == []
