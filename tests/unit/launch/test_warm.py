"""Compiling kernels is a courtesy of the install, never a reason for it to fail."""

from __future__ import annotations

import sys

from backend.launch import warm


def test_kernels_that_cannot_be_compiled_do_not_fail_the_install(monkeypatch, capsys, tmp_path):
    class Broken:
        def warm(self) -> None:
            raise RuntimeError("no LLVM for this machine\nand many lines more")

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "backend.kvindex.kernels", Broken())
    monkeypatch.setattr("backend.kvindex.kernels", Broken(), raising=False)
    assert warm.main() == 0
    assert (
        capsys.readouterr().err
        == "The index kernels were not compiled now (RuntimeError: no LLVM for this machine); the first start will.\n"
    )


def test_a_cache_folder_that_cannot_be_made_does_not_fail_the_install(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert warm.main() == 0
    assert "not compiled now" in capsys.readouterr().err
