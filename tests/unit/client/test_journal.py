"""A site's journal: its state, and a log that does not grow without end."""

from pathlib import Path

import pytest

from federated_yolo.client import journal as journal_module
from federated_yolo.client.journal import LOG, Journal, journal_at


def test_work_that_fails_is_no_work_that_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def fail() -> None:
        with journal.work("train", "run-1", 1, 2):
            assert journal.read()["doing"] == "training"
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert journal.read()["doing"] == "waiting for work"
    assert "training" not in journal.read()
    assert "round 1 of 2: training failed" in (tmp_path / LOG).read_text()


def test_the_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_LOG_BYTES", 500)
    monkeypatch.setattr(journal_module, "MAX_LOGS", 2)
    journal = Journal(tmp_path)
    for number in range(40):
        journal.note(f"line {number}")
    logs = sorted(path.name for path in tmp_path.glob(f"{LOG}*"))
    assert logs == [LOG, f"{LOG}.1", f"{LOG}.2"]
    assert all(path.stat().st_size <= 500 for path in tmp_path.glob(f"{LOG}*"))
    assert "line 39" in (tmp_path / LOG).read_text()


def test_a_folder_that_cannot_be_written_costs_the_journal_and_not_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with Journal(tmp_path / "file" / "below").work("train", "run-1", 1, 2) as numbers:
        numbers["seconds"] = 1.0
    assert "the site's journal in" in caplog.text


def test_a_simulation_has_no_journal(tmp_path: Path) -> None:
    assert journal_at({"partition-id": 0, "num-partitions": 2}) is None
    assert journal_at({"data": "x", "no-such-key": 1}) is None
    found = journal_at({"data": "x", "name": "a", "folder": str(tmp_path)})
    assert found is not None
    assert found.folder == tmp_path
