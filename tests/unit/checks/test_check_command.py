"""`python federated.py check`: what it counts, finds and refuses, on data that can be counted by
hand."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from processes import ROOT
from recipes import make_class_folders, make_dataset
from rich.console import Console

from federated_yolo import cli
from federated_yolo.checks import check_command
from federated_yolo.checks.check_command import check_and_show
from federated_yolo.checks.data_report import (
    DataReport,
    Twins,
    all_classes,
    find_twins,
    findings,
    look_at,
)
from federated_yolo.checks.federation import checked
from federated_yolo.checks.round_estimate import RoundEstimate, Trial, _together, estimate
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.checkpoint import load_base

TINY = {"imgsz": 32, "batch": 2, "workers": 0}


def write_image(path: Path, seed: int, width: int = 64, height: int = 64) -> None:
    """An image that looks like none of another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def write_label(image: Path, *rows: str) -> None:
    """The label file of an image in `images/SPLIT`."""
    folder = image.parents[2] / "labels" / image.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{image.stem}.txt").write_text("\n".join(rows))


def make_client(folder: Path, seed: int, names: str = "[a, b]") -> Path:
    """Two train images and one val image with an object of class 0 each; gives its data.yaml."""
    for number, split in enumerate(("train", "train", "val")):
        image = folder / "images" / split / f"{number}.png"
        write_image(image, seed + number)
        write_label(image, "0 0.5 0.5 0.5 0.5")
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return path


def config_of(folder: Path, *paths: Path, **settings: Any) -> Config:
    return Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [{"name": path.parent.name, "data": str(path)} for path in paths],
            "save_dir": str(folder / "runs"),
            "train": TINY,
            **settings,
        }
    )


def reports_of(config: Config, folder: Path) -> list[DataReport]:
    return look_at(config, load_base(config.base_model), folder / "caches")


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is tried, which takes seconds."""

    def known(federation: Any, num_server_val: int) -> RoundEstimate:
        return estimate(federation, federation.config.clients[0].name, Trial(0.5, 10**9, 0), 0)

    monkeypatch.setattr(check_command, "estimate_round", known)


def shown(config: Config) -> tuple[str, list[str]]:
    """What the terminal shows of a check, and the problems it ends with."""
    output = io.StringIO()
    try:
        check_and_show(Console(file=output, width=120), config)
    except InputError as error:
        return output.getvalue(), error.problems
    return output.getvalue(), []


def row_of(text: str, table: str, client: str) -> list[str]:
    """Cells of a client in the table with this title."""
    lines = text[text.index(table) :].splitlines()
    return next(line for line in lines if line.split()[:1] == [client]).split()[1:]


# What is counted


def test_objects_backgrounds_and_sizes_of_boxes_are_counted(tmp_path: Path) -> None:
    """At imgsz 320, an image of 640 x 320 is fed as 320 x 160 pixels."""
    path = make_client(tmp_path / "north", 0)
    images = tmp_path / "north" / "images" / "train"
    write_image(images / "wide.png", 10, 640, 320)
    write_label(
        images / "wide.png",
        "0 0.5 0.5 0.096875 0.2",  # 31 x 32 pixels: small
        "1 0.5 0.5 0.1 0.2",  # 32 x 32: medium
        "1 0.5 0.5 0.296875 0.6",  # 95 x 96: medium
        "1 0.5 0.5 0.3 0.6",  # 96 x 96: large
    )
    write_image(images / "empty.png", 11)
    write_label(images / "empty.png")
    write_image(images / "unlabelled.png", 12)
    (report,) = reports_of(config_of(tmp_path, path, train={"imgsz": 320}), tmp_path)
    train = report.splits["train"]
    assert len(train.images) == 5
    assert (train.num_background, train.num_unlabelled, train.num_damaged) == (2, 1, 0)
    assert train.class_counts.tolist() == [3, 3]
    assert train.size_counts.tolist() == [1, 2, 3]  # the others are 160 x 160: large
    assert len(report.splits["val"].images) == 1
    # RT-DETR gets it stretched to 320 x 320: 31 x 64, 32 x 64, 95 x 192 and 96 x 192 pixels.
    config = config_of(tmp_path, path, train={"imgsz": 320}, base_model="rtdetr-l.yaml")
    (report,) = reports_of(config, tmp_path)
    assert report.splits["train"].size_counts.tolist() == [0, 2, 4]


def test_a_test_split_counts_only_with_labels(tmp_path: Path) -> None:
    path = make_client(tmp_path / "north", 0)
    path.write_text(path.read_text() + "test: images/test\n")
    image = tmp_path / "north" / "images" / "test" / "0.png"
    write_image(image, 20)
    config = config_of(tmp_path, path)
    assert "test" not in reports_of(config, tmp_path)[0].splits
    write_label(image, "0 0.5 0.5 0.5 0.5")
    assert len(reports_of(config, tmp_path / "again")[0].splits["test"].images) == 1


# Images that occur again


def test_twins_are_counted_where_they_do_harm(tmp_path: Path) -> None:
    north, south = (make_client(tmp_path / n, s) for n, s in (("north", 0), ("south", 50)))
    server = make_client(tmp_path / "server", 100)
    first = tmp_path / "north" / "images" / "train" / "0.png"
    for copy in (
        tmp_path / "north" / "images" / "train" / "again.png",
        tmp_path / "south" / "images" / "train" / "same.png",
        tmp_path / "server" / "images" / "val" / "same.png",
    ):
        shutil.copyfile(first, copy)
    leak = cv2.imread(str(tmp_path / "south" / "images" / "train" / "1.png"))
    assert leak is not None
    near = np.clip(leak.astype(int) + 4, 0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "south" / "images" / "val" / "near.png"), near)
    config = config_of(tmp_path, north, south, evaluate={"data": str(server)})
    twins = find_twins(reports_of(config, tmp_path))
    assert twins.num_images == 3 + 1 + 3 + 2 + 2
    assert twins.near == {
        "within_train": {"north": 2, "south": 0, SERVER: 0},
        "held_out_in_train": {"north": 0, "south": 1, SERVER: 0},
        "train_elsewhere": {"north": 2, "south": 1, SERVER: 0},
        "held_out_elsewhere": {"north": 0, "south": 0, SERVER: 1},
    }
    assert twins.exact == {
        **twins.near,
        "held_out_in_train": {"north": 0, "south": 0, SERVER: 0},
    }
    assert {Path(p).name for p in twins.examples["held_out_in_train"]} == {"1.png", "near.png"}


def test_one_file_that_two_clients_list_is_an_exact_twin(tmp_path: Path) -> None:
    north, south = (make_client(tmp_path / n, s) for n, s in (("north", 0), ("south", 50)))
    image = tmp_path / "north" / "images" / "val" / "2.png"
    south.write_text(south.read_text().replace("images/train", f"[images/train, {image}]"))
    (tmp_path / "south" / "list.txt").write_text(f"{image}\n{tmp_path}/south/images/train/0.png\n")
    south.write_text("train: list.txt\nval: images/val\nnames: [a, b]\n")
    twins = find_twins(reports_of(config_of(tmp_path, north, south), tmp_path))
    assert twins.exact["held_out_elsewhere"] == {"north": 1, "south": 0}
    assert twins.examples["held_out_elsewhere"] == (str(image), str(image))
    assert not any(twins.near["within_train"].values())


# Classes


def test_classes_that_differ_between_clients_are_named(tmp_path: Path) -> None:
    north = make_client(tmp_path / "north", 0, "[a, b]")
    south = make_client(tmp_path / "south", 50, "[b, a]")
    west = make_client(tmp_path / "west", 100, "[a, c, d]")
    reports = reports_of(config_of(tmp_path, north, south, west), tmp_path)
    names = all_classes(config_of(tmp_path, north, south, west), reports)
    assert names == ("a", "b", "c", "d")
    assert [report.objects(names) for report in reports] == [
        [2, 0, None, None],
        [0, 2, None, None],
        [2, None, 0, 0],
    ]
    lines = findings(reports, names, Twins(0, {}, {}, {}, {}, ()))
    assert lines[0].startswith("'south' lists the classes of 'north' in another order: [b, a]")
    for expected in (
        "'north' does not annotate [c, d]",
        "'west' does not annotate [b]",
        "no client has an object of [c, d] in train",
        "'north' lists [b], but has no object of it in train",
        "'south' lists [a], but has no object of it in train",
    ):
        assert sum(line.startswith(expected) for line in lines) == 1
    assert len(lines) == 7  # and 'south' without [c, d]


def test_of_a_classifier_it_says_that_images_are_missing_and_counts_no_boxes(
    tmp_path: Path, no_trial: None
) -> None:
    """An image of one class says that it is of no other: nothing is left out of the loss."""
    folders = [
        make_class_folders(tmp_path / name, names=names, seed=i)
        for i, (name, names) in enumerate((("north", ("a", "b")), ("south", ("a", "c"))))
    ]
    datasets = [{"name": folder.name, "data": str(folder)} for folder in folders]
    config = config_of(tmp_path, base_model="yolov8n-cls.yaml", datasets=datasets)
    text, problems = shown(config)
    assert not problems
    assert row_of(text, "Images by class", "north") == ["3", "3", "0"]
    assert row_of(text, "Images by class", "south") == ["3", "0", "3"]
    assert "'north' has no image of [c] in train" in text
    assert "loss" not in text
    assert "not_annotated" not in text
    assert "small" not in text


# Damaged files


def test_all_problems_are_listed_and_what_can_be_read_is_still_shown(
    tmp_path: Path, no_trial: None
) -> None:
    north = make_client(tmp_path / "north", 0)
    south = make_client(tmp_path / "south", 50)
    image = tmp_path / "north" / "images" / "train" / "1.png"
    image.write_bytes(b"no image")
    write_label(tmp_path / "south" / "images" / "val" / "2.png", "7 0.5 0.5 0.5 0.5")
    write_image(tmp_path / "south" / "images" / "val" / "3.png", 60)
    config = config_of(tmp_path, north, south, tmp_path / "lost" / "data.yaml")
    with pytest.raises(InputError) as caught, checked(config):
        pass
    text, problems = shown(config)
    assert problems == caught.value.problems  # the same as before a run
    assert len(problems) == 3
    assert row_of(text, "Images", "north") == ["1", "0", "1", "1", "0", "0", "–"]
    assert row_of(text, "Images", "south") == ["2", "0", "0", "1", "1", "1", "–"]
    assert row_of(text, "Images", "lost") == ["–"] * 7
    assert "No estimate of time and memory: there are problems" in text
    assert "Nothing was found" not in text
    assert (tmp_path / "runs" / "check" / "train.png").is_file()


def test_pixels_that_cannot_be_decoded_are_a_problem(tmp_path: Path, no_trial: None) -> None:
    """Of a picture with a sound header, which is all that the checks of a run read."""
    north = make_client(tmp_path / "north", 0)
    image = tmp_path / "north" / "images" / "train" / "1.bmp"
    write_image(image, 5)
    write_label(image, "0 0.5 0.5 0.5 0.5")
    image.write_bytes(image.read_bytes()[:60])
    config = config_of(tmp_path, north)
    with checked(config):
        pass
    assert shown(config)[1] == [
        f"datasets[0] 'north' ({north}): train: {image}: its pixels cannot be decoded; repair or "
        "remove the image and its label"
    ]


# Time


def test_the_estimate_is_steps_by_seconds_shared_out_over_those_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 and 2 images in batches of 2 are 3 and 1 steps, 2 epochs each."""
    paths = [
        make_dataset(tmp_path / name, num_train=num, num_val=4)
        for name, num in (("north", 5), ("south", 2))
    ]
    config = config_of(tmp_path, *paths, local_epochs=2, client_resources={"num_gpus": 0})
    with checked(config) as federation:
        monkeypatch.setattr("federated_yolo.checks.round_estimate.num_cpus", lambda: 1)
        alone = estimate(federation, "north", Trial(0.5, 1, 0), num_server_val=6)
        monkeypatch.setattr("federated_yolo.checks.round_estimate.num_cpus", lambda: 8)
        together = estimate(federation, "north", Trial(0.5, 1, 0), num_server_val=0)
    assert alone.num_steps == {"north": 6, "south": 2}
    assert alone.seconds == {"north": 3.0, "south": 1.0}
    assert (alone.at_once, alone.round_s) == (1, 4.0)
    assert alone.evaluation_s == pytest.approx((4 + 4 + 6) / 2 * 0.5 / 3)
    assert (together.at_once, together.round_s) == (2, 3.0)


def test_clients_take_turns_as_a_whole() -> None:
    """Three equal ones in two places take as long as four; of a part, each is as the mean."""
    assert _together({"a": 2.0, "b": 2.0, "c": 2.0}, 3, 2) == 4.0
    assert _together({"a": 1.0, "b": 1.0, "c": 2.0}, 3, 2) == 3.0
    assert _together({"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0}, 2, 2) == 2.0


def kill_this_process(settings: object) -> None:
    """Stands for a step that takes more memory than there is."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_not_blamed_on_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_client(tmp_path / name, 0) for name in ("north", "south")]
    monkeypatch.setattr("federated_yolo.checks.round_estimate._try", kill_this_process)
    monkeypatch.setattr("federated_yolo.checks.round_estimate.num_cpus", lambda: 2)
    assert shown(config_of(tmp_path, *paths, client_resources={"num_gpus": 0}))[1] == [
        "a process that tried a training step, of 2 at once, was killed, most likely for want of "
        "memory; raise client_resources.num_cpus, so that fewer run at once, or lower train.batch "
        "or train.imgsz"
    ]


# The command


def test_the_command_tries_steps_draws_a_picture_and_exits_with_0(tmp_path: Path) -> None:
    path = make_client(tmp_path / "north", 0)
    config = tmp_path / "config.yaml"
    config.write_text(f"base_model: yolov8n.yaml\ndatasets: [{path}]\n")
    arguments = [f"save_dir={tmp_path}/out", "train.imgsz=32", "train.batch=2", "name=mine"]
    done = subprocess.run(
        [sys.executable, ROOT / "federated.py", "check", config, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Training, estimated" in done.stdout
    assert done.stdout.endswith("Nothing was found that would stop a run\n")
    picture = cv2.imread(str(tmp_path / "out" / "check" / "mine.png"))
    assert picture is not None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["check"]  # nothing was run


def test_problems_end_the_command_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, no_trial: None
) -> None:
    path = make_client(tmp_path / "north", 0)
    (tmp_path / "north" / "images" / "train" / "1.png").write_bytes(b"no image")
    config = tmp_path / "config.yaml"
    config.write_text(f"base_model: yolov8n.yaml\ndatasets: [{path}]\nsave_dir: {tmp_path}/out\n")
    assert cli.main(["check", str(config), "train.imgsz=32", "train.batch=2"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert "1.png" in captured.err
    assert cli.main(["check", "resume=true"]) == 2
    assert "check looks at data before a run" in capsys.readouterr().err


def test_of_supernodes_it_says_what_cannot_be_looked_at(tmp_path: Path) -> None:
    server = make_client(tmp_path / "server", 0)
    evaluate = {"data": str(server)}
    config = config_of(tmp_path, datasets="supernodes", evaluate=evaluate)
    text, problems = shown(config)
    assert problems == []
    assert "the clients are SuperNodes, whose data is not here" in text
    assert row_of(text, "Images", SERVER)[3:] == ["1", "0", "0", "–"]
    (tmp_path / "server" / "images" / "val" / "2.png").write_bytes(b"no image")
    (problem,) = shown(config)[1]
    assert problem.startswith("evaluate.data")


@pytest.mark.parametrize("place", ["images/train", "labels", "train/labels", "images/labels"])
def test_labels_where_nobody_looks_are_told(tmp_path: Path, place: str) -> None:
    """Their images would be background without a word."""
    client = make_client(tmp_path / "north", 0)
    folder = tmp_path / "north" / place
    folder.mkdir(parents=True, exist_ok=True)
    labels = tmp_path / "north" / "labels" / "train"
    shutil.move(labels / "0.txt", folder / "0.txt")
    config = config_of(tmp_path, client)
    reports = reports_of(config, tmp_path)
    found = findings(reports, ("a", "b"), find_twins(reports))
    assert any(
        line.endswith(
            "1 of 2 train images have no label file, and count as background; 1 of them have one "
            f"in {folder}, and it is looked for in {labels}"
        )
        for line in found
    )


def test_labels_of_a_linked_folder_are_told_where_they_are(tmp_path: Path) -> None:
    client = make_client(tmp_path / "north", 0)
    disk = tmp_path / "disk"
    shutil.move(tmp_path / "north" / "images" / "train", disk)
    (tmp_path / "north" / "images" / "train").symlink_to(disk, target_is_directory=True)
    reports = reports_of(config_of(tmp_path, client), tmp_path)
    split = reports[0].splits["train"]
    assert (split.num_unlabelled, split.num_elsewhere) == (2, 2)
    assert (split.found_in, split.searched) == (tmp_path / "north" / "labels" / "train", disk)


def test_only_images_that_are_used_are_counted(tmp_path: Path) -> None:
    client = make_client(tmp_path / "north", 0)
    client.write_text(client.read_text() + "test: images/val\n")
    config = config_of(tmp_path, client, train={**TINY, "fraction": [0.5, 1, 0]})
    (report,) = reports_of(config, tmp_path)
    assert {name: len(split.images) for name, split in report.splits.items()} == {
        "train": 1,
        "val": 1,
    }


def test_only_the_selected_classes_are_counted(tmp_path: Path) -> None:
    north = make_client(tmp_path / "north", 0)
    south = make_client(tmp_path / "south", 10, names="[b, a]")
    write_label(tmp_path / "south" / "images" / "train" / "0.png", "0 .5 .5 .5 .5\n1 .5 .5 .1 .1")
    config = config_of(tmp_path, north, south, train={**TINY, "classes": [0]})
    first, second = reports_of(config, tmp_path)
    assert all_classes(config, [first, second]) == ("a",)
    assert [report.objects(("a",)) for report in (first, second)] == [[2], [1]]
    assert [report.splits["train"].num_background for report in (first, second)] == [0, 1]
    assert second.splits["val"].size_counts.sum() == 0
