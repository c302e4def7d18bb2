"""One tree of errors: its drawing is complete, and an error survives the way to another process."""

from __future__ import annotations

import inspect
import pickle

from backend.core import errors


def test_the_drawing_names_every_error() -> None:
    classes = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.WorkbenchError)}
    assert {name for name in classes if name not in (errors.__doc__ or "")} == set()


def test_an_error_says_what_to_do_and_survives_pickling() -> None:
    error = errors.PortInUse("127.0.0.1", 18802, what="the gateway")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert "--port-base" in str(copy)
    assert copy.port == 18802


def test_a_config_error_names_file_line_and_field() -> None:
    error = errors.ConfigError("must be a whole number", file="fleet.yaml", line=7, field="replicas")
    assert str(error) == "fleet.yaml:7 `replicas`: must be a whole number"
