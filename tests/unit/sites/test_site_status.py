"""What a site reads of itself."""

import itertools
from pathlib import Path

import pytest
from kit import consortium, joined

from federated_yolo.client.journal import Journal
from federated_yolo.sites import site_command, status


def test_status_and_log_tell_of_the_work_the_scores_and_the_last_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    consortium(tmp_path / "lungs")
    site = joined(tmp_path / "lungs", "north", tmp_path / "n", "/srv/data")
    journal = Journal(site.work_folder())
    with journal.work("train", "run-1", 3, 20) as numbers:
        numbers.update({"num-examples": 12, "seconds": 4.25, "train/box_loss": 1.5})
    with journal.work("evaluate", "run-1", 3, 20) as numbers:
        numbers.update({"metrics/mAP50-95(B)": 0.4, "fitness": 0.4, "class/a/mAP50": 1.0})
    with journal.work("evaluate.whole", "run-1", 3, 20) as numbers:
        numbers["fitness"] = 0.99  # of another site's model
    journal.note("its disk is full", is_error=True)
    assert site_command.main(["status", "--folder", str(site.path)]) == 0
    shown = capsys.readouterr().out
    assert "SuperNode   does not run: site start" in shown
    assert "waiting for work (run run-1, round 3 of 20)" in shown
    assert "trained     round 3: 12 images, 4.2 s, box_loss 1.5000" in shown
    assert "own score   round 3: mAP50-95(B) 0.4000, fitness 0.4000" in shown
    assert ": its disk is full\n" in shown
    assert site_command.main(["log", "--folder", str(site.path)]) == 0
    shown = capsys.readouterr().out
    assert "INFO  run run-1, round 3 of 20: 12 images, 4.2 s, box_loss 1.5000\n" in shown
    assert "ERROR its disk is full\n" in shown
    assert "0.99" not in shown


def test_a_log_is_followed_also_when_it_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.log"
    path.write_text("one\n")
    steps = iter(["one\ntwo\n", "new\n"])
    monkeypatch.setattr(status.time, "sleep", lambda _: path.write_text(next(steps)))
    lines = itertools.islice(status.log_lines(path, follow=True), 3)
    assert list(lines) == ["one", "two", "new"]
