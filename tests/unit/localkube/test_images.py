"""What runs for an image, and what of a real engine's command line the simulator understands."""

from __future__ import annotations

import pytest

from backend.core.errors import ConfigError
from backend.localkube.kubelet.images import Images, options

IMAGES = Images.read()


@pytest.mark.parametrize(
    ("reference", "engine", "version"),
    [
        ("vllm/vllm-openai:v0.10.2", "vllm", "0.10.2"),
        ("vllm/vllm-openai", "vllm", "0.32.0"),
        ("vllm/vllm-openai:latest", "vllm", "0.32.0"),
        ("registry.example:5000/mirror/vllm-openai:v0.24.0-cu129", "vllm", "0.24.0"),
        ("vllm/vllm-openai:v0.10.2@sha256:aa", "vllm", "0.10.2"),
        ("lmsysorg/sglang:v0.5.3", "sglang", "0.5.3"),
        ("lmsysorg/sglang:v0.5.3.post1-cu126", "sglang", "0.5.3"),
        ("aibrix-cn-beijing.cr.volces.com/aibrix/vllm-openai:v0.20.0", "vllm", "0.20.0"),
        ("vllm/vllm-openai:broken", "vllm", "0.32.0"),
        ("lmsysorg/sglang:never-ready", "sglang", "0.5.23"),
    ],
)
def test_an_image_is_an_engine_of_a_version(reference, engine, version):
    image = IMAGES.find(reference)
    assert image is not None
    assert (image.rule.engine, image.version) == (engine, version)


@pytest.mark.parametrize("reference", ["nginx:1.27", "vllm/vllm-openai:nonsense", "vllm/vllm-openai-x/evil:v1.0.0", "", "vllm-openai:"])
def test_an_image_without_a_rule_or_a_version_cannot_be_pulled(reference):
    assert IMAGES.find(reference) is None


def test_an_image_id_differs_exactly_when_something_else_would_run():
    ids = [IMAGES.find(f"vllm/vllm-openai:{tag}").image_id for tag in ("v0.10.2", "v0.11.0", "broken", "v0.10.2")]
    assert len(set(ids)) == 3
    assert ids[0] == ids[3]
    assert ids[0].startswith("vllm/vllm-openai@sha256:")


VLLM, SGLANG = IMAGES.find("vllm/vllm-openai:v0.10.2").rule, IMAGES.find("lmsysorg/sglang:v0.5.3").rule


@pytest.mark.parametrize(
    ("rule", "line", "model", "role", "port", "args"),
    [
        (VLLM, "vllm serve qwen3-8b --port 8001 --block-size 16", "qwen3-8b", "", 8001, {"block-size": "16"}),
        (VLLM, "python3 -m vllm.entrypoints.openai.api_server --model=/m --served-model-name m", "/m", "", 0, {"served-model-name": "m"}),
        (
            VLLM,
            "vllm serve m -tp 4 --tensor-parallel-size 4 --trust-remote-code --max-model-len 4096",
            "m",
            "",
            0,
            {"max-model-len": "4096"},
        ),
        (VLLM, "vllm serve --block_size 32 --model m", "m", "", 0, {"block-size": "32"}),
        (VLLM, 'vllm serve m --kv-transfer-config {"kv_role":"kv_consumer"}', "m", "decode", 0, {}),
        (VLLM, 'vllm serve m --kv-transfer-config {"kv_role":"kv_both"}', "m", "", 0, {"kv-connector": "nixl"}),
        (VLLM, "--model m --byte-hashes --block-size 16", "m", "", 0, {"byte-hashes": "true", "block-size": "16"}),
        (
            SGLANG,
            "--model-path m --disaggregation-mode prefill --page-size 64",
            "m",
            "prefill",
            0,
            {"block-size": "64"},
        ),
        (SGLANG, "--model-path m --port nonsense --enable-metrics", "m", "", 0, {}),
        (VLLM, "", "", "", 0, {}),
    ],
)
def test_a_real_command_line_is_read_for_what_the_simulator_knows(rule, line, model, role, port, args):
    told = options(rule, line.split())
    assert (told.model, told.role, told.port, dict(told.args)) == (model, role, port, args)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rules: [{repository: x}]", "engine"),
        ("rules: [", "flow"),
        ("rules: [{repository: '(', engine: e, version: '1', command: []}]", "unterminated"),
    ],
    ids=["field_missing", "no_yaml", "no_expression"],
)
def test_a_wrong_table_is_a_configuration_error_that_names_the_file(tmp_path, text, complaint):
    (tmp_path / "images.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as raised:
        Images.read(tmp_path / "images.yaml")
    assert raised.value.file.endswith("images.yaml")


def test_a_table_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Images.read(tmp_path / "none.yaml")
