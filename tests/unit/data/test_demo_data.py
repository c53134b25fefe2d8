"""The demo's data: reproducible, truthful labels, clients that differ, readable by Ultralytics."""

import math
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from recipes import file_digests
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from federated_yolo.data import demo_data
from federated_yolo.data.demo_data import (
    IMAGE_SIZE,
    MARKER,
    NAMES,
    NUM_HELD_OUT,
    SCENES,
    make_demo_data,
)

NUM_IMAGES = {(name, "train"): scene.num_train for name, scene in SCENES.items()}
NUM_IMAGES |= {(name, "val"): scene.num_val for name, scene in SCENES.items()}
NUM_IMAGES |= {("server", "val"): NUM_HELD_OUT}

# Image (size, size, 3) uint8 BGR or mask (size, size) bool; labels (n, 5): class, xywh fractions.
Example = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data of seed 0; tests only read it."""
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data").held_out.parent.parent


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test make a few images only."""
    scenes = {name: replace(scene, num_train=4, num_val=2) for name, scene in SCENES.items()}
    monkeypatch.setattr(demo_data, "SCENES", scenes)
    monkeypatch.setattr(demo_data, "NUM_HELD_OUT", 6)


def read_split(folder: Path, part: str) -> list[Example]:
    """The images of a split with their labels, in order of their names."""
    examples = []
    for path in sorted((folder / "images" / part).iterdir()):
        image = cv2.imread(str(path))
        assert image is not None
        label = folder / "labels" / part / f"{path.stem}.txt"
        examples.append((image, np.loadtxt(label, ndmin=2)))
    return examples


def stack_labels(folder: Path, part: str) -> np.ndarray:
    """The labels of a split in one array, (n, 5): class, xywh in fractions."""
    return np.concatenate([labels for _, labels in read_split(folder, part)])


def background_of(image: np.ndarray) -> str:
    """The scene whose middle colour is nearest to the median colour of the image."""
    colour = np.median(image, axis=(0, 1))
    middle = {name: np.add(scene.dark, scene.light) / 2 for name, scene in SCENES.items()}
    return min(middle, key=lambda name: float(np.linalg.norm(colour - middle[name])))


def corners_in_pixels(labels: np.ndarray) -> np.ndarray:
    """Labels (n, 5) to boxes (n, 4) in pixels: left, top, right, bottom."""
    centres, sizes = labels[:, 1:3] * IMAGE_SIZE, labels[:, 3:] * IMAGE_SIZE
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "first", seed=5)
    make_demo_data(tmp_path / "second", seed=5)
    digests = file_digests(tmp_path / "first")
    assert len(digests) == 2 * (3 * 6 + 6) + 4 + 1  # images and labels, data.yaml, marker
    assert file_digests(tmp_path / "second") == digests


@pytest.mark.usefixtures("small")
def test_another_seed_gives_other_images_under_the_same_names(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "first", seed=0)
    make_demo_data(tmp_path / "other", seed=1)
    first, other = file_digests(tmp_path / "first"), file_digests(tmp_path / "other")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".png"))


def test_every_split_has_its_number_of_images_and_no_image_twice(folder: Path) -> None:
    found = Counter(tuple(path.parts[-4::2][:2]) for path in folder.rglob("*.png"))
    assert found == NUM_IMAGES
    images = [digest for name, digest in file_digests(folder).items() if name.endswith(".png")]
    assert len(set(images)) == len(images)


def test_every_image_is_square_and_every_box_lies_inside_it(folder: Path) -> None:
    for name, part in NUM_IMAGES:
        for image, labels in read_split(folder / name, part):
            assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
            assert len(labels) >= 1
            assert set(labels[:, 0]) <= set(range(len(NAMES)))
            assert corners_in_pixels(labels).min() >= 1
            assert corners_in_pixels(labels).max() <= IMAGE_SIZE - 1


@pytest.fixture
def painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """Masks of the pixels that objects cover, (size, size) bool, each with its labels (n, 5).

    A split drawn without shadows is compared with the same one drawn without objects.
    """
    scenes = list(SCENES.values())
    monkeypatch.setattr(cv2, "GaussianBlur", lambda mask, *_, **__: 0 * mask)
    demo_data.write_split(tmp_path / "objects", "val", 60, scenes, scenes, np.random.default_rng(3))
    monkeypatch.setattr(demo_data, "draw_shape", lambda *_, **__: None)
    demo_data.write_split(tmp_path / "bare", "val", 60, scenes, scenes, np.random.default_rng(3))
    pairs = zip(
        read_split(tmp_path / "objects", "val"), read_split(tmp_path / "bare", "val"), strict=True
    )
    return [((image != bare).any(axis=2), labels) for (image, labels), (bare, _) in pairs]


def test_boxes_hold_exactly_what_was_painted(painted: list[Example]) -> None:
    for mask, labels in painted:
        outside = mask.copy()
        for left, top, right, bottom in corners_in_pixels(labels):
            x0, y0, x1, y1 = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
            rows, columns = np.nonzero(mask[y0:y1, x0:x1])
            # The object comes within a pixel of all four sides ...
            assert max(columns.min(), rows.min()) <= 1
            assert columns.max() >= x1 - x0 - 2
            assert rows.max() >= y1 - y0 - 2
            outside[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = False
        assert not outside.any()  # ... and nothing was painted beyond them.


def test_classes_name_the_shapes_that_were_painted(
    painted: list[Example],
) -> None:
    """The share that a shape covers of its smallest enclosing circle does not turn with it."""
    shares = np.array([1, 2 / math.pi, 3 * math.sqrt(3) / (4 * math.pi)])  # as NAMES
    seen = Counter()
    for mask, labels in painted:
        num_parts, parts = cv2.connectedComponents(mask.astype(np.uint8))
        if num_parts - 1 != len(labels):
            continue  # objects touch
        for label, x, y in labels[:, :3]:
            part = parts == parts[int(y * IMAGE_SIZE), int(x * IMAGE_SIZE)]
            _, radius = cv2.minEnclosingCircle(np.argwhere(part).astype(np.float32))
            share = part.sum() / (math.pi * (radius + 0.5) ** 2)
            assert np.abs(shares - share).argmin() == label
            seen[NAMES[int(label)]] += 1
    assert all(seen[name] >= 10 for name in NAMES)


def test_each_client_has_a_favourite_class_and_size_of_its_own(folder: Path) -> None:
    labels = {name: stack_labels(folder / name, "train") for name in SCENES}
    favourites = {name: Counter(rows[:, 0]).most_common(1)[0] for name, rows in labels.items()}
    assert {name: NAMES[int(label)] for name, (label, _) in favourites.items()} == {
        "harbour": "circle",
        "forest": "square",
        "desert": "triangle",
    }
    assert all(count > 0.45 * len(labels[name]) for name, (_, count) in favourites.items())
    sides = {name: np.median(rows[:, 3:]) * IMAGE_SIZE for name, rows in labels.items()}
    assert 1.1 * sides["harbour"] < sides["forest"] < sides["desert"] / 1.1


def test_each_client_is_at_home_in_three_images_of_five(folder: Path) -> None:
    for home, scene in SCENES.items():
        images = [image for image, _ in read_split(folder / home, "train")]
        seen = Counter(background_of(image) for image in images)
        shares = {name: 0.6 if name == home else 0.2 for name in SCENES}
        assert seen == {name: shares[name] * scene.num_train for name in SCENES}


def test_the_held_out_set_mixes_the_backgrounds_sizes_and_classes(folder: Path) -> None:
    held_out = read_split(folder / "server", "val")
    seen = Counter(background_of(image) for image, _ in held_out)
    assert seen == dict.fromkeys(SCENES, NUM_HELD_OUT / 3)
    labels = np.concatenate([labels for _, labels in held_out])
    shares = np.bincount(labels[:, 0].astype(int), minlength=3) / len(labels)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.1)
    for name in SCENES:
        median_area = np.median(stack_labels(folder / name, "train")[:, 3:].prod(axis=1))
        assert labels[:, 3:].prod(axis=1).min() < median_area < labels[:, 3:].prod(axis=1).max()


def test_ultralytics_reads_it_after_a_move_and_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for (name, part), num_images in NUM_IMAGES.items():
        data = check_det_dataset(Path("moved") / name / "data.yaml", autodownload=False)
        assert data["names"] == dict(enumerate(NAMES))
        assert Path(data[part]) == moved / name / "images" / part
        dataset = YOLODataset(img_path=data[part], data=data, imgsz=IMAGE_SIZE, augment=False)
        scan = dataset.cache_labels(tmp_path / f"{name}_{part}.cache")
        # found, missing, empty, corrupt, all
        assert scan["results"] == (num_images, 0, 0, 0, num_images)
        assert scan["msgs"] == []


@pytest.mark.usefixtures("small")
def test_a_second_call_rewrites_nothing(tmp_path: Path) -> None:
    first = make_demo_data(tmp_path / "data")
    (tmp_path / "data" / "harbour" / "labels" / "train.cache").touch()  # as Ultralytics leaves it
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    assert make_demo_data(tmp_path / "data") == first
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=r"is not demo data .* Choose a new or empty folder"):
        make_demo_data(tmp_path)
    assert file_digests(tmp_path).keys() == {"thesis.txt"}
    with pytest.raises(ValueError, match="is not demo data"):
        make_demo_data(tmp_path / "thesis.txt")


@pytest.mark.usefixtures("small")
def test_another_seed_or_version_in_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_demo_data(tmp_path / "data", seed=0)
    before = file_digests(tmp_path)
    with pytest.raises(ValueError, match=r"holds demo data of another seed .* than seed 1"):
        make_demo_data(tmp_path / "data", seed=1)
    monkeypatch.setattr(demo_data, "VERSION", demo_data.VERSION + 1)
    with pytest.raises(ValueError, match=r"holds demo data of another seed or version"):
        make_demo_data(tmp_path / "data", seed=0)
    assert file_digests(tmp_path) == before


@pytest.mark.usefixtures("small")
def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    data = make_demo_data(tmp_path)
    assert all(path.is_file() for path in (*data.clients.values(), data.held_out))


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path, train: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_data, "write_yaml", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_the_script_makes_the_data_below_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo_data.py", "--seed", "2"])
    demo_data.main()
    printed = [Path(line.split(maxsplit=1)[1]) for line in capsys.readouterr().out.splitlines()]
    root = tmp_path / "datasets" / "demo"
    assert printed == [root / name / "data.yaml" for name in (*SCENES, "server")]
    assert (root / MARKER).read_text().strip() == demo_data.settings_digest(seed=2)
