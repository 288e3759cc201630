"""The files of a run's folder."""

from __future__ import annotations

from pathlib import Path

from textgym.run_folder import EPISODES, RunFolder


def test_lines_come_back_as_they_were_written_whatever_a_reply_holds(tmp_path: Path) -> None:
    rows = [{"reply": "one\u2028two\u2029three\x85four\x1cfive\r\nsix\rseven"}, {"reply": ""}]
    folder = RunFolder(tmp_path)
    folder.write_lines(EPISODES, rows)
    assert folder.read_lines(EPISODES) == rows
