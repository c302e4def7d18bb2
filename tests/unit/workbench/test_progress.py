"""Progress in its three places."""

from __future__ import annotations

import io

from workbench import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar():
    out = Terminal()
    with progress.progress("replay t", 10, stream=out) as bar:
        bar.advance(10, "no errors")
    assert "100%" in out.getvalue()
    assert "no errors" in out.getvalue()


def test_elsewhere_there_are_lines_now_and_then():
    out = io.StringIO()
    with progress.progress("replay t", 2000, stream=out) as bar:
        for _ in range(2000):
            bar.advance(note="no errors")
    assert out.getvalue() == "replay t: 2,000 of 2,000, no errors\n"


def test_a_notebook_gets_one_output_that_changes(monkeypatch):
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    def display(bundle, raw, display_id):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(progress, "_notebook_display", lambda: display)
    with progress.progress("replay t", 4) as bar:
        bar.advance(4)
    assert [bundle["text/plain"] for bundle in shown] == ["replay t: 0 of 4", "replay t: 4 of 4"]
    assert 'value="1.000"' in shown[-1]["text/html"]


def test_switched_off_it_says_nothing(capsys):
    with progress.progress("replay t", 2, enabled=False) as bar:
        bar.advance(2)
    assert capsys.readouterr() == ("", "")
