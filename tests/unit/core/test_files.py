"""Files that others read while we write, memory that others map, and a machine that is in the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from backend.core import files
from backend.core.errors import DiskFull, NotFound, StateFolderError
from backend.core.sharedfile import SharedFile


def test_a_replaced_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["pods.json"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EACCES, StateFolderError), (errno.EROFS, StateFolderError)],
)
def test_an_operating_system_error_becomes_one_that_says_what_to_do(number: int, kind: type[Exception], tmp_path: Path) -> None:
    explained = files.explain(OSError(number, "no"), tmp_path / "file")
    assert isinstance(explained, kind)
    assert "\n" in str(explained)


def test_a_write_to_a_full_disk_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pods.json"
    files.write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["pods.json"]


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "state"
    taken.touch()
    with pytest.raises(StateFolderError, match="--state"):
        files.ensure_folder(taken)


def test_a_stack_has_one_shared_folder_whoever_asks(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert files.shared_folder(tmp_path) == files.shared_folder(link)
    assert files.shared_folder(tmp_path) != files.shared_folder(tmp_path / "other")


def test_a_reader_sees_what_the_writer_stored(tmp_path: Path) -> None:
    writer = SharedFile.create(tmp_path / "words", 64)
    reader = SharedFile.open(tmp_path / "words")
    writer.words[3] = 2**64 - 1
    assert reader.words[3] == 2**64 - 1
    with pytest.raises(TypeError):
        reader.words[0] = 1
    for file in (writer, reader):
        file.close()


def test_a_replaced_shared_file_leaves_old_readers_undisturbed(tmp_path: Path) -> None:
    first = SharedFile.create(tmp_path / "words", 64)
    first.words[0] = 1
    reader = SharedFile.open(tmp_path / "words")
    second = SharedFile.create(tmp_path / "words", 64)
    second.words[0] = 2
    assert reader.words[0] == 1
    for file in (first, second, reader):
        file.close()


def test_a_missing_shared_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SharedFile.open(tmp_path / "none")


def test_a_shared_file_that_has_no_room_yet_is_one_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "counts.bin"
    path.touch()
    with pytest.raises(NotFound, match="no room yet"):
        SharedFile.open(path)
