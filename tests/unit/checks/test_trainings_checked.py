"""Images, layers and classes that leave nothing to train: refused before round 1."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
from sound_configs import Sites, config_of, problems_of

from federated_yolo.checks.federation import checked


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"imgsz": 32}, "found 1 train image, but at imgsz 32 BatchNorm"),
        ({"imgsz": 320, "multi_scale": 0.9}, "found 1 train image, but at imgsz 32 BatchNorm"),
        ({"imgsz": 32, "batch": 1}, "train.batch: found 1, but at imgsz 32 BatchNorm"),
        ({"imgsz": 64, "batch": 1}, ""),
        ({"imgsz": 320, "multi_scale": 0.5}, ""),
    ],
)
def test_batches_of_one_tiny_image_are_refused_before_round_1(
    tmp_path: Path, sites: Sites, train: dict[str, Any], expected: str
) -> None:
    one = recipes.make_dataset(tmp_path / "one", num_train=1, num_val=1)
    config = config_of(tmp_path, {**sites, "one": one}, train=train)
    if not expected:
        with checked(config):
            return
    (problem,) = problems_of(config)
    assert expected in problem
    assert "multi_scale that keep every size at least 64" in problem
    if "batch" not in train:
        assert problem.startswith("datasets[2] 'one': ")


def test_a_fraction_that_leaves_one_tiny_image_is_refused(tmp_path: Path, sites: Sites) -> None:
    lines = problems_of(config_of(tmp_path, sites, train={"imgsz": 32, "fraction": 0.5}))
    assert [line.partition(":")[0] for line in lines] == [
        "datasets[0] 'north'",
        "datasets[1] 'south'",
    ]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1, (6, 4, 2)),
        (0.5, (3, 4, 2)),
        (5, (5, 4, 2)),
        ([0.5, 0.5], (3, 2, 2)),
        ([1, 1, 0], (6, 4, 0)),
        ([2, 3, 0.5], (2, 3, 1)),
    ],
)
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_images_are_counted_after_fraction(
    tmp_path: Path, task: str, fraction: Any, expected: tuple[int, int, int]
) -> None:
    data = recipes.make_data(tmp_path / "data", task, num_train=6, num_val=4)
    other = recipes.make_data(tmp_path / "other", task, num_train=2, num_val=2)
    if task == "classify":
        (tmp_path / "other" / "val").rename(tmp_path / "data" / "test")
    else:
        data.write_text(f"{data.read_text()}test: {other.parent}/images/val\n")
    base = "yolov8n.yaml" if task == "detect" else "yolov8n-cls.yaml"
    train = {"imgsz": 64, "fraction": fraction}
    config = config_of(
        tmp_path, {"data": data}, base_model=base, train=train, evaluate={"data": str(data)}
    )
    with checked(config) as federation:
        found = federation.summaries["data"]
        assert (found.num_train, found.num_val, found.num_test) == expected
        assert federation.server_data is not None
        assert ("test" in federation.server_data) == bool(expected[2])
        assert not found.test_is_unlabelled


# Train arguments of which only a model, a trainer or a machine tells that they are wrong


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (1000, "found 1000, but the model has layers 0 to 22, of which nothing is left to train"),
        (23, "found 23, but the model has layers 0 to 22, of which nothing is left to train"),
        (list(range(23)), "of which nothing is left to train; freeze fewer"),
        ([0, 1000], "found [0, 1000], but the model has layers 0 to 22, and no 1000; correct it"),
        (["22.cv9"], "found ['22.cv9'], but the model has layers 0 to 22, and no '22.cv9'"),
        (["23.cv2"], "found ['23.cv2'], but the model has layers 0 to 22, and no '23.cv2'"),
        (22, ""),
        ([10, "22.cv2", "5", "0.bn"], ""),  # layer 10 has no arrays
    ],
)
def test_layers_to_freeze_have_to_be_there_and_to_leave_some(
    tmp_path: Path, sites: Sites, freeze: Any, expected: str
) -> None:
    config = config_of(tmp_path, sites, train={"imgsz": 64, "freeze": freeze})
    if not expected:
        with checked(config):
            return
    (problem,) = problems_of(config)
    assert problem.startswith("train.freeze: found ")
    assert expected in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
@pytest.mark.parametrize("amp", ["bf16", "BF16"])
def test_bfloat16_on_a_cpu_is_refused(tmp_path: Path, sites: Sites, amp: str) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, train={"imgsz": 64, "amp": amp}))
    assert problem.startswith("train.amp: found bf16, which needs a GPU, and clients train on the")


def test_what_only_a_trainer_refuses_is_refused_before_round_1(
    tmp_path: Path,
) -> None:
    """Ultralytics draws masks at imgsz / mask_ratio pixels when it reads its first batch."""
    data = recipes.make_data(tmp_path / "data", "segment", num_train=2, num_val=1)
    train = {"imgsz": 64, "mask_ratio": 100}
    config = config_of(tmp_path, {"data": data}, base_model="yolov8n-seg.yaml", train=train)
    num_threads = torch.get_num_threads()
    (problem,) = problems_of(config)
    assert problem.startswith(
        "train: training cannot be set up with these arguments for datasets[0] 'data': ValueError: "
        "mask_ratio=100 downsamples"
    )
    assert torch.get_num_threads() == num_threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_classifiers_crops_have_one_scale(tmp_path: Path) -> None:
    data = recipes.make_data(tmp_path / "data", "classify")
    config = config_of(
        tmp_path, {"data": data}, base_model="yolov8n-cls.yaml", train={"scale": [0.5, 1.5]}
    )
    (problem,) = problems_of(config)
    assert problem.startswith("train.scale: found [0.5, 1.5], expected one number")


# What train.classes leaves


def write_labels(data: Path, split: str, *labels: str) -> None:
    """The label files of a split of `make_dataset`, one after the other."""
    for number, label in enumerate(labels):
        (data.parent / "labels" / split / f"{number}.txt").write_text(label)


ONE, TWO = "0 .5 .5 .4 .4\n", "1 .5 .5 .4 .4\n"


def sites_of_classes(folder: Path) -> tuple[Path, Path]:
    """`west` has the classes a and b on all images, `east` in another order, and b alone."""
    west = recipes.make_dataset(folder / "west", num_train=2, num_val=2, names=("a", "b"))
    east = recipes.make_dataset(folder / "east", num_train=2, num_val=2, names=("b", "a"))
    for split in ("train", "val"):
        write_labels(west, split, ONE + TWO, ONE + TWO)
        write_labels(east, split, ONE, ONE)
    return west, east


@pytest.mark.parametrize("classes", [0, [0]])
@pytest.mark.parametrize("single_cls", [False, True])
def test_splits_without_a_label_of_the_selected_classes_are_refused(
    tmp_path: Path, classes: Any, single_cls: bool
) -> None:
    """They would score 0 in each round, and lower the mean that chooses best.pt."""
    west, east = sites_of_classes(tmp_path)
    train = {"imgsz": 64, "classes": classes, "single_cls": single_cls}
    config = config_of(
        tmp_path, {"west": west, "east": east}, train=train, evaluate={"data": str(east)}
    )
    reason = "no label is of [a], the classes that train.classes leaves; do without this data set"
    assert problems_of(config) == [
        f"{where}: {reason}, or label some"
        for where in (
            "datasets[1] 'east': train",
            "datasets[1] 'east': val",
            "evaluate.data: val",
        )
    ]
    for split in ("train", "val"):
        write_labels(east, split, ONE, TWO)  # the index of a there is 1
    with checked(config):
        pass


def test_a_test_split_without_a_label_of_the_selected_classes_is_left_alone(
    tmp_path: Path,
) -> None:
    west, east = sites_of_classes(tmp_path)
    for data in (west, east):
        data.write_text(f"{data.read_text()}test: {east.parent}/images/test\n")
    shutil.copytree(east.parent / "images" / "val", east.parent / "images" / "test")
    shutil.copytree(east.parent / "labels" / "val", east.parent / "labels" / "test")
    west.write_text(west.read_text().replace("[a, b]", "[b, a]"))  # its names go by its own order
    train = {"imgsz": 64, "classes": [1]}
    config = config_of(
        tmp_path, {"west": west}, train=train, names=["b", "a"], evaluate={"data": str(west)}
    )
    with checked(config) as federation:
        summary = federation.summaries["west"]
        assert (summary.num_test, summary.test_is_unlabelled) == (0, True)
        assert federation.server_data is not None
        assert "test" not in federation.server_data
    everything = config.model_copy(update={"train": {"imgsz": 64}})
    with checked(everything) as federation:
        assert federation.summaries["west"].num_test == 2
