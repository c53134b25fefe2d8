"""What is written for the clients of a split data set: nothing lost, and training takes it."""

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from partitions import NUM_TRAIN, NUM_VAL, listed, read_image, run
from processes import ROOT, finished
from recipes import file_digests, make_class_folders, make_data, make_dataset
from ultralytics.data.utils import check_cls_dataset, img2label_paths

from federated_yolo.checks.federation import checked
from federated_yolo.config.loading import load_config
from federated_yolo.data.scan import check_dataset
from federated_yolo.partitioning import source as source_module


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "quantity", "class"])
def test_every_image_is_at_one_client_and_the_counts_are_true(
    scheme: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_digests(source.parent)
    output = tmp_path / "parts"
    arguments = (source, "-o", output, "--clients", 2, "--scheme", scheme)
    code, shown, errors = run(capsys, *arguments)
    assert (code, errors) == (0, [])
    result = json.loads((output / "partitions.json").read_text())["clients"]
    for split, num_images in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        lists = listed(output, split)
        expected = sorted(str(p) for p in (source.parent / "images" / split).iterdir())
        assert sorted(image for images in lists for image in images) == expected
        assert len(expected) == num_images
        for images, entry in zip(lists, result.values(), strict=True):
            labels = [Path(p).read_text().splitlines() for p in img2label_paths([*images])]
            counts = Counter("abc"[int(line.split()[0])] for lines in labels for line in lines)
            assert entry[f"{split}_images"] == len(images)
            assert entry[f"{split}_classes"] == {name: counts[name] for name in "abc"}
    assert file_digests(source.parent) == before
    assert f"federated-yolo {output}/federated.yaml" in shown
    again = tmp_path / "again"
    assert run(capsys, source, "-o", again, *arguments[3:])[0] == 0
    assert listed(again) == listed(output)


def test_the_config_it_writes_passes_the_checks_before_round_1(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = str(ROOT / "utils" / "partition.py")
    command = [sys.executable, script, str(source), "-o", "parts", "--clients", "3"]
    done = finished(command, cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.name for p in (elsewhere / "parts").iterdir()} == {
        *("client_0", "client_1", "client_2"),
        *("federated.yaml", "partitions.json", "partitions.png"),
    }
    monkeypatch.chdir(tmp_path)  # the config works from any directory
    config = load_config(elsewhere / "parts" / "federated.yaml", ["train.imgsz=64"])
    with checked(config) as federation:
        assert federation.task == "detect"
        assert [s.num_train for s in federation.summaries.values()] == [4, 4, 4]
        assert [s.num_val for s in federation.summaries.values()] == [2, 2, 2]
        boxes = [sum(s.class_counts) for s in federation.summaries.values()]
        result = json.loads((elsewhere / "parts" / "partitions.json").read_text())["clients"]
        assert boxes == [sum(entry["train_classes"].values()) for entry in result.values()]


def test_wrong_usage_is_one_line_each_and_exit_code_2(tmp_path: Path) -> None:
    script = str(ROOT / "utils" / "partition.py")
    done = finished(
        [sys.executable, script, "none.yaml", "--clients", "0", "-o", "x"], cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: --clients: found 0, expected at least 1",
        "error: none.yaml: no such file or folder; expected a data.yaml or a folder of data",
    ]
    assert not (tmp_path / "x").exists()


def test_copies_go_anywhere_with_labels_backgrounds_and_equal_names(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin"
    for name in ("north", "south"):  # images/train/0.jpg, ... in both
        make_dataset(origin / name, 4, 2, seed=len(name) + ord(name[0]))
    (origin / "north" / "labels" / "train" / "0.txt").unlink()
    path = origin / "data.yaml"
    path.write_text(
        "train: [north/images/train, south/images/train]\n"
        "val: [north/images/val, south/images/val]\nnames: [a, b, c]\n"
    )
    output = tmp_path / "parts"
    arguments = ("--scheme", "group", "--clients", 2, "--copy", "--val", "shared")
    assert run(capsys, path, "-o", output, *arguments)[0] == 0
    result = json.loads((output / "partitions.json").read_text())["clients"]
    groups = [entry["train_groups"] for entry in result.values()]
    assert groups == [{"north": 4}, {"south": 4}]
    moved = shutil.move(output / "client_0", tmp_path / "moved")
    shutil.rmtree(origin)
    summary = check_dataset(
        Path(moved) / "data.yaml", "detect", tmp_path / "caches", where="moved",
        splits=("train", "val"),
    )  # fmt: skip
    assert (summary.num_train, summary.num_val) == (4, 4)
    assert sum(summary.class_counts) == sum(result["client_0"]["train_classes"].values())
    assert len(list((Path(moved) / "labels" / "train").rglob("*.txt"))) == 3


def test_lists_of_images_are_read_and_val_can_be_shared(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    images = [f"./images/train/{number}.jpg" for number in range(5)]
    (folder / "some.txt").write_text("\n".join([*images, images[0]]))  # one of them twice
    (folder / "data.yaml").write_text("train: some.txt\nval: images/val\nnames: [a, b, c]\n")
    output = tmp_path / "parts"
    code, _, _ = run(capsys, folder / "data.yaml", "-o", output, "--clients", 2, "--val", "shared")
    assert code == 0
    assert sorted(image for images in listed(output) for image in images) == [
        str(folder / image[2:]) for image in images
    ]
    assert [len(images) for images in listed(output, "val")] == [NUM_VAL, NUM_VAL]


@pytest.mark.parametrize(
    ("task", "row", "extra"),
    [
        ("segment", "1 0.1 0.1 0.5 0.1 0.5 0.5 0.3 0.6 0.1 0.5", ""),
        ("obb", "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", ""),
        ("pose", "1 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 2", "kpt_shape: [2, 3]\nflip_idx: [1, 0]\n"),
    ],
)
def test_every_kind_of_label_goes_with_its_image(
    task: str, row: str, extra: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    for label in folder.glob("labels/*/*.txt"):
        label.write_text(row)
    with (folder / "data.yaml").open("a") as file:
        file.write(extra)
    output = tmp_path / "parts"
    code, shown, _ = run(capsys, folder / "data.yaml", "-o", output, "--clients", 2)
    assert code == 0
    assert re.search(f"^Labels of {task}: .*; for another task change base_model", shown, re.M)
    data = output / "client_1" / "data.yaml"
    summary = check_dataset(data, task, tmp_path, where="x", splits=("train", "val"))
    assert (summary.num_train, summary.class_counts) == (6, (0, 6, 0))
    assert summary.kpt_shape == ((2, 3) if task == "pose" else None)
    base = yaml.safe_load((output / "federated.yaml").read_text())["base_model"]
    assert base == source_module.BASE_MODELS[task]


@pytest.mark.parametrize("boxes", ["train", "val", "train/0.txt"])
def test_where_only_some_objects_have_an_outline_all_are_taken_as_boxes(
    boxes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A split of boxes alone, and a file of them among outlines, of which nothing is left then."""
    data = make_data(tmp_path / "mixed", "segment", num_train=4, num_val=4)
    labels = [*(tmp_path / "mixed" / "labels").rglob("*.txt")]
    for path in labels:
        if f"labels/{boxes}" in path.as_posix():
            path.write_text("0 .5 .5 .2 .2\n")
    rows = [row.split() for path in labels for row in path.read_text().splitlines()]
    few = f"({sum(len(row) > 5 for row in rows)} of {len(rows)})"
    code, shown, _ = run(capsys, data, "-o", tmp_path / "parts", "--clients", 2)
    assert code == 0
    assert shown.startswith(
        f"Labels of detect: not all objects have outlines {few}, so all are taken as boxes; for "
        "another task change base_model"
    )


@pytest.mark.parametrize("copy", [True, False])
def test_classification_folders_keep_all_classes(
    copy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split, num_images in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(num_images):
                image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / "pets" / split / name / f"{number}.png"), image)
    output = tmp_path / "parts"
    arguments = ("--clients", 2, "--scheme", "class", *(["--copy"] if copy else []))
    code, shown, errors = run(capsys, tmp_path / "pets", "-o", output, *arguments)
    assert (code, errors) == (0, [])
    for client, name in (("client_0", "cat"), ("client_1", "dog")):
        found = check_cls_dataset(str(output / client))
        assert found["names"] == {0: "cat", 1: "dog"}
        images = list((output / client).rglob("*.png"))
        assert Counter(p.parent.relative_to(output).as_posix() for p in images) == {
            f"{client}/train/{name}": 4,
            f"{client}/val/{name}": 2,
        }
        assert all(p.is_symlink() != copy and p.read_bytes() for p in images)
    assert f"federated-yolo {output}/federated.yaml" in shown
    config = load_config(output / "federated.yaml", [])
    with checked(config) as federation:
        assert federation.task == "classify"
        assert [s.class_counts for s in federation.summaries.values()] == [(4, 0), (0, 4)]


def test_images_of_a_linked_class_folder_count_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = make_class_folders(tmp_path / "pets", num_train=6, num_val=4, names=("cat", "dog"))
    for split in ("train", "val"):
        elsewhere = shutil.move(pets / split / "dog", tmp_path / f"dogs_{split}")
        (pets / split / "dog").symlink_to(elsewhere)
    expected = check_dataset(pets, "classify", tmp_path, where="x", splits=("train", "val"))
    assert (expected.num_train, expected.num_val, expected.class_counts) == (6, 4, (3, 3))
    output = tmp_path / "parts"
    assert run(capsys, pets, "-o", output, "--clients", 2)[0] == 0
    clients = json.loads((output / "partitions.json").read_text())["clients"].values()
    for split, total in (("train", expected.num_train), ("val", expected.num_val)):
        assert sum(client[f"{split}_images"] for client in clients) == total
        assert len([p for p in output.glob(f"*/{split}/*/*.jpg") if p.is_file()]) == total
    for split, folder in (("train", pets / "train"), ("val", tmp_path / "dogs_val")):
        code, _, errors = run(capsys, pets, "-o", folder / "parts", "--clients", 2)
        assert code == 2
        assert f"parts: is inside {folder}, where the {split} images are" in errors[0]
        assert not (folder / "parts").exists()


def test_all_wrong_folders_and_files_of_a_classifier_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = make_class_folders(tmp_path / "pets", names=("cat", "dog"))
    (pets / "train" / "cat" / "0.jpg").write_bytes(b"no image")
    (pets / "val" / "dog").rename(pets / "val" / "dogs")
    code, _, errors = run(capsys, pets, "-o", tmp_path / "parts")
    assert code == 2
    assert errors == [
        f"error: SOURCE ({pets}): val: class 'dogs' has no folder in train [cat, dog]; did you "
        "mean 'dog'?; make one (it may be empty), or remove it"
    ]
    (pets / "val" / "dogs").rename(tmp_path / "dogs")
    shutil.rmtree(pets / "val" / "cat")
    code, _, errors = run(capsys, pets, "-o", tmp_path / "parts")
    assert (code, len(errors)) == (2, 2)
    assert f"{pets}: train: {pets}/train/cat/0.jpg: " in errors[0]
    assert f"{pets}: val: Couldn't find any class folder" in errors[1]


@pytest.mark.parametrize("has_yaml", [True, False])
def test_a_folder_of_images_and_labels_is_not_taken_for_one_of_a_classifier(
    has_yaml: bool, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "robo"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(source.parent / kind / split, folder / split / kind)
    if has_yaml:
        data = "train: train/images\nval: val/images\nnames: [a, b, c]\n"
        (folder / "data.yaml").write_text(data)
    code, shown, errors = run(capsys, folder, "-o", tmp_path / "parts", "--clients", 2)
    if has_yaml:  # Ultralytics reads it, so it stays as it is
        assert (code, errors) == (0, [])
        assert shown.startswith("Labels of detect: all are boxes")
    else:
        assert (code, len(errors)) == (2, 1)
        assert errors[0].startswith(f"error: {folder}: images and labels, but nothing")
        assert "classes.txt with one name a line" in errors[0]


@pytest.mark.parametrize("place", [".", "camera", "camera/below"])
def test_an_output_among_the_images_is_refused_and_leaves_them_as_they_are(
    place: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    for kind in ("images", "labels"):  # all are in one folder below that of the data.yaml
        shutil.move(folder / kind / "train", folder / kind / "all")
        shutil.move(folder / kind / "all", folder / kind / "train" / "camera")
    before = file_digests(folder)
    output = folder / "images" / "train" / place / "parts"
    code, _, errors = run(capsys, folder / "data.yaml", "-o", output, "--clients", 2, "--copy")
    assert code == 2
    assert "where the train images are" in errors[0]
    assert file_digests(folder) == before


def test_an_output_beside_the_folders_of_images_or_among_listed_ones_is_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    for seed, name in enumerate(("north", "south")):
        make_dataset(project / name, 4, 2, seed=seed)
    data = project / "data.yaml"
    data.write_text(
        "train: [north/images/train, south/images/train]\n"
        "val: [north/images/val, south/images/val]\nnames: [a, b, c]\n"
    )
    assert run(capsys, data, "-o", project / "parts", "--clients", 2)[0] == 0
    for split in ("train", "val"):
        images = sorted((project / "north" / "images" / split).iterdir())
        (project / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
    data.write_text("train: train.txt\nval: val.txt\nnames: [a, b, c]\n")
    output = project / "north" / "images" / "train" / "parts"
    assert run(capsys, data, "-o", output, "--clients", 2)[0] == 0


def test_the_picture_is_drawn(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, source, "-o", tmp_path / "parts", "--clients", 3)[0] == 0
    picture = read_image(tmp_path / "parts" / "partitions.png")
    height, width, _ = picture.shape
    assert width > 600
    assert height > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # bars, shades and text


# Near-duplicates


def test_near_duplicates_are_counted_and_groups_keep_them_together(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source.parent, tmp_path / "origin"))
    for split in ("train", "val"):  # 6 videos of 2 frames, 3 of 2; and the first once more
        for path in sorted((folder / "images" / split).iterdir()):
            number = int(path.stem)
            twin = folder / "images" / split / f"{number - number % 2}.jpg"
            image = cv2.convertScaleAbs(read_image(twin), alpha=1, beta=number % 2)
            cv2.imwrite(str(path.with_name(f"{split}{number // 2}_{number}.png")), image)
            label = folder / "labels" / split / f"{number}.txt"
            label.rename(label.with_name(f"{split}{number // 2}_{number}.txt"))
        for path in (folder / "images" / split).glob("*.jpg"):
            path.unlink()
    shutil.copy(folder / "images" / "train" / "train0_0.png", folder / "images" / "val" / "x.png")
    data = folder / "data.yaml"
    code, _, warnings = run(capsys, data, "-o", tmp_path / "iid", "--clients", 2, "--seed", 1)
    assert code == 0
    found = json.loads((tmp_path / "iid" / "partitions.json").read_text())["near_duplicates"]
    home = {Path(p).name: i for i, images in enumerate(listed(tmp_path / "iid")) for p in images}
    pairs = [(f"train{n}_{2 * n}.png", f"train{n}_{2 * n + 1}.png") for n in range(6)]
    divided = sum(home[first] != home[second] for first, second in pairs)
    assert divided
    assert found == {"between_clients": 2 * divided, "train_and_val": 1}
    assert len(warnings) == 2
    start = f"warning: {2 * divided} of 12 train images have a near-duplicate at another client"
    assert warnings[0].startswith(start)
    assert warnings[1].startswith(
        "warning: 1 of 7 val images have a near-duplicate in train, e.g. "
    )
    assert "x.png" in warnings[1]
    arguments = ("--clients", 2, "--scheme", "group", "--group-by", r"/(train\d|val\d|x)[^/]*$")
    code, _, warnings = run(capsys, data, "-o", tmp_path / "group", *arguments)
    assert (code, len(warnings)) == (0, 1)
    found = json.loads((tmp_path / "group" / "partitions.json").read_text())["near_duplicates"]
    assert found == {"between_clients": 0, "train_and_val": 1}
