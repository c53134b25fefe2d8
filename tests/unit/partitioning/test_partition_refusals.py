"""What is refused before a data set is split, and left as it is."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from partitions import NUM_TRAIN, NUM_VAL, run
from processes import ROOT, clean_environment, wait_until
from recipes import file_digests, make_dataset

from federated_yolo.partitioning import command as command_module


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--scheme", "irid"],
            "--scheme: found 'irid', expected one of iid, .*; did you mean 'iid'",
        ),
        (["--val", "both"], "--val: found 'both', expected split or shared"),
        (["--seed", "-1"], "--seed: found -1, expected a whole number of at least 0"),
        (["--alpha", "1"], "--alpha: has no effect with --scheme iid; use dirichlet or quantity"),
        (["--alpha", "nan", "--scheme", "dirichlet"], "--alpha: found nan, expected a number from"),
        (
            ["--alpha", "0", "--scheme", "quantity"],
            "--alpha: found 0, expected a number from 0.001",
        ),
        (["--group-by", "x"], "--group-by: has no effect with --scheme iid; use group"),
        (["--group-by", "(", "--scheme", "group"], r"--group-by: '\(' is no regular expression"),
        (
            ["--group-by", "/train/", "--scheme", "group"],
            f"--group-by: '/train/' matches nothing in the path of {NUM_VAL} of 18 images, e.g. ",
        ),
        (["--scheme", "group"], r"--clients: found 5, but the train images are of 1 group \(\.\)"),
        (["--clients", "many"], "argument --clients: invalid int value: 'many'; see --help"),
        (["--clients", "7"], "--clients: found 7, but there are 6 val images, .*, or --val shared"),
    ],
)
def test_wrong_options_are_refused_with_the_next_step(
    arguments: list[str], expected: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, errors = run(capsys, source, "-o", tmp_path / "parts", *arguments)
    assert (code, len(errors)) == (2, 1)
    assert re.match(f"error: {expected}", errors[0]), errors[0]
    assert not (tmp_path / "parts").exists()


def test_all_damaged_files_of_both_splits_are_reported_at_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    (folder / "images" / "train" / "0.jpg").write_bytes(b"")
    (folder / "labels" / "val" / "1.txt").write_text("9 0.5 0.5 0.1 0.1")
    code, _, errors = run(capsys, folder / "data.yaml", "-o", tmp_path / "parts")
    assert (code, len(errors)) == (2, 2)
    assert f"train: {folder}/images/train/0.jpg: " in errors[0]
    assert f"val: {folder}/images/val/1.jpg: Label class 9 exceeds" in errors[1]


def test_an_image_in_train_and_val_or_with_a_path_from_nowhere_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    data = folder / "data.yaml"
    data.write_text("train: images\nval: images/val\nnames: [a, b, c]\n")
    code, _, errors = run(capsys, data, "-o", tmp_path / "parts")
    assert (code, len(errors)) == (2, 6)
    assert errors[0].endswith(f"{folder}/images/val/0.jpg is in train and in val; list it in one")
    assert errors[5] == "error: ... and 1 more problems"
    monkeypatch.chdir(tmp_path)
    (folder / "list.txt").write_text("origin/images/train/0.jpg\n")
    data.write_text("train: list.txt\nval: images/val\nnames: [a, b, c]\n")
    code, _, errors = run(capsys, data, "-o", tmp_path / "parts")
    assert (code, len(errors)) == (2, 1)
    assert "train: lists origin/images/train/0.jpg, which starts at the working" in errors[0]


def test_a_client_without_labels_is_refused_before_training_would(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    for number in range(NUM_TRAIN - 1):
        (folder / "labels" / "train" / f"{number}.txt").write_text("")
    code, _, errors = run(capsys, folder / "data.yaml", "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert re.match(
        r"error: client_\d: none of its 6 train images has a label; use fewer", errors[0]
    )


def test_a_folder_with_something_in_it_is_left_as_it_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, errors = run(capsys, source, "-o", tmp_path)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].endswith("will not be overwritten; choose a new or empty folder")
    assert file_digests(tmp_path).keys() == {"mine.txt"}


@pytest.mark.parametrize(
    ("error", "code"), [(OSError("disk full"), 1), (KeyboardInterrupt("interrupted"), 130)]
)
def test_what_cannot_be_finished_is_removed(
    error: BaseException, code: int, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(command_module, "draw_partitions", fail)
    output = tmp_path / "parts"
    output.mkdir()
    found, _, errors = run(capsys, source, "-o", output, "--clients", 2)
    assert found == code
    assert errors == [f"error: {error}"]
    assert list(output.iterdir()) == []


def test_labels_that_would_get_the_same_name_are_not_copied_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "origin", 4, 4)
    folder = tmp_path / "origin" / "images" / "train"
    (folder / "images").mkdir()
    shutil.copy(folder / "0.jpg", folder / "images" / "0.png")
    code, _, errors = run(capsys, data, "-o", tmp_path / "parts", "--clients", 1, "--copy")
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("error: --copy: the labels ")
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("script", ["partition.py", "export_federated.py"])
def test_an_interrupt_while_libraries_are_imported_leaves_nothing(
    script: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "utils" / script)],
        env={**clean_environment(), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert wait_until(lambda: any(tmp_path.glob("*/Ultralytics/settings.json")), 60)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert not list(tmp_path.iterdir())
