"""No password in what people see: URLs, representations of settings and endpoints, errors of the configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backend.api.endpoints import Endpoints
from backend.core import config, settings
from backend.core.errors import ConfigError
from backend.core.urls import masked
from backend.launch.options import UpOptions
from backend.launch.parts import Part, Secrets

URL = "redis://:hunter2@127.0.0.1:6379/0"

URLS = [
    ("a_password_alone", URL, "redis://:***@127.0.0.1:6379/0"),
    ("a_name_too", "rediss://anna:hunter2@db:1/0", "rediss://anna:***@db:1/0"),
    ("a_user_alone_may_be_a_token", "redis://hunter2@db", "redis://:***@db"),
    ("a_password_with_an_at", "redis://:a@hunter2@db/0", "redis://:***@db/0"),
    ("a_password_with_a_slash", "redis://:a/hunter2@db/0", "redis://:***@db/0"),
    ("a_parameter", "redis://db/0?password=hunter2&x=1", "redis://db/0?password=***&x=1"),
    ("none", "http://127.0.0.1:18801/v1", "http://127.0.0.1:18801/v1"),
    ("no_url", "", ""),
]


@pytest.mark.parametrize(("url", "shown"), [case[1:] for case in URLS], ids=[case[0] for case in URLS])
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked(url) == shown


KEEPERS = [
    settings.RecordSettings(redis_url=URL),
    settings.GatewaySettings(auth_token="hunter2", records=settings.RecordSettings(redis_url=URL)),
    settings.Settings(gateway=settings.GatewaySettings(auth_token="hunter2")),
    Endpoints(state="s", pid=1, redis=URL),
    UpOptions(redis_url=URL),
    Secrets(valkey_password="hunter2"),
    Part("valkey", ("valkey-server",), config="requirepass hunter2"),
]


@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: type(keeper).__name__)
def test_who_keeps_a_secret_does_not_tell_it(keeper: object) -> None:
    assert "hunter2" not in repr(keeper)
    assert repr(keeper).startswith(type(keeper).__name__)


def test_endpoints_are_written_whole_and_shown_masked() -> None:
    endpoints = Endpoints(state="s", pid=1, redis=URL, control="http://127.0.0.1:18801")
    assert msgspec.json.decode(msgspec.json.encode(endpoints), type=Endpoints).redis == URL
    assert endpoints.masked().redis == "redis://:***@127.0.0.1:6379/0"
    assert "control='http://127.0.0.1:18801'" in repr(endpoints)


WRONG = [
    ("a_token", "auth_token = 1234567\n"),
    ("a_url", "[records]\nredis_url = 1234567\n"),
    ("a_list_in_place_of_a_token", 'auth_token = ["1234567"]\n'),
    ("a_url_in_place_of_its_table", 'records = "redis://:1234567@db"\n'),
]


@pytest.mark.parametrize("text", [case[1] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_value_that_may_be_a_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="must be") as caught:
        config.load(settings.GatewaySettings, file)
    assert "1234567" not in str(caught.value)
