"""YOLO exports of annotation tools: each object at its place, or a line that says what to do."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports_yolo as exports
import pytest
import truths
import yaml
from exports_yolo import IMAGES, NAMES, Drawn, write_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data
from federated_yolo.data.exports import classification, ndjson, yolo, yolo_folders
from federated_yolo.data.exports.convert import Options, Prepared, prepare
from federated_yolo.data.exports.write import task_of
from federated_yolo.data.exports.write import write as write_labels
from federated_yolo.data.scan import check_dataset

FORMATS = (*yolo.FORMATS, *yolo_folders.FORMATS, *ndjson.FORMATS, *classification.FORMATS)


def made(root: Path, target: Path, **options: object) -> Prepared:
    return prepare(root, target, "north", Options(**options), where="x")  # pyright: ignore


def assert_objects(prepared: Prepared, images: tuple[Drawn, ...], *, in_train: bool) -> None:
    """All objects are where they were drawn, and in the split that they were in."""
    assert prepared.made is not None
    data = yaml.safe_load(prepared.path.read_text(encoding="utf-8"))
    assert list(data["names"].values()) == list(NAMES)
    found = truths.boxes_of(prepared.path)
    for split in dict.fromkeys(("train",) if in_train else ("train", "val")):
        drawn = [d for d in images if in_train or d.split == split]
        assert sorted(found[split]) == sorted(Path(d.name).name for d in drawn)
        for d in drawn:
            expected = [(NAMES[index], box) for index, box in d.objects]
            truths.assert_same_objects(found[split][Path(d.name).name], expected)


@pytest.mark.parametrize("write", exports.WITH_SPLITS)
def test_an_export_with_splits_is_read(write: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "in")
    prepared = made(tmp_path / "in", tmp_path)
    assert_objects(prepared, IMAGES, in_train=False)
    check_dataset(prepared.path, "detect", tmp_path / "c", where="x", splits=("train", "val"))


@pytest.mark.parametrize("write", exports.WITHOUT_SPLITS)
def test_an_export_without_splits_is_all_train(write: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "in")
    with pytest.raises(InputError, match=r"without a val split; val_fraction=0.2"):
        made(tmp_path / "in", tmp_path)
    (content,) = [
        f.read(tmp_path / "in") for f in FORMATS if f.matches(tmp_path / "in") and f.read
    ][:1]
    assert [*content.splits] == ["train"]
    prepared = made(tmp_path / "in", tmp_path, val_fraction=0.3)
    found = truths.boxes_of(prepared.path)
    objects = {name: o for split in found.values() for name, o in split.items()}
    for drawn in IMAGES:
        expected = [(NAMES[index], box) for index, box in drawn.objects]
        truths.assert_same_objects(objects[drawn.name], expected)


names = st.text("aZ0 ü#%-_.é", min_size=1, max_size=6).map(lambda t: f"{t.strip(' .')}x.jpg")
places = st.lists(st.sampled_from(["p", "q r", "ü"]), max_size=2)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    write=st.sampled_from([w for w in exports.WITH_SPLITS if w is not exports.ndjson]),
    files=st.lists(st.tuples(places, names), min_size=2, max_size=4, unique_by=str),
    classes=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_any_names_and_folders_keep_their_objects(
    write: Callable[..., None],
    files: list[tuple[list[str], str]],
    classes: list[int],
) -> None:
    images = tuple(
        Drawn("/".join([*folders, name]), ((c, (n + 1, 2, n + 9, 12)),), "train")
        for n, ((folders, name), c) in enumerate(zip(files, classes, strict=False))
    )
    images = (*images, Drawn("v.jpg", ((0, (1, 1, 5, 5)),), "val"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        write(root, images)
        prepared = made(root, Path(folder))
        data = prepared.path.parent
        for drawn in images[:-1]:
            links = [
                p
                for p in (data / "images" / "train").rglob("*")
                if p.is_symlink() and p.readlink().as_posix().endswith(f"/{drawn.name}")
            ]
            # A name may end as another does: the nearest is the one without more before it.
            link = min(links, key=lambda p: len(p.readlink().as_posix()))
            label = data / "labels" / link.relative_to(data / "images").with_suffix(".txt")
            assert label.read_text() == exports.lines_of(drawn)


def test_windows_paths_and_other_machines_are_found_beside_the_yaml(tmp_path: Path) -> None:
    root = tmp_path / "in"
    exports.ultralytics(
        root, train="/content/drive/My Drive/x/images/train", val="C:\\me\\x\\images\\val"
    )
    prepared = made(root / "data.yaml", tmp_path)
    assert_objects(prepared, IMAGES, in_train=False)
    assert prepared.made
    assert "'C:\\me\\x\\images\\val' is taken as images/val" in str(prepared.made.notes[1]).replace(
        "\\\\", "\\"
    )


@pytest.mark.parametrize("prefix", ["", "data/", "./", "data\\"])
def test_the_lines_of_cvats_lists_start_at_the_yaml(tmp_path: Path, prefix: str) -> None:
    exports.cvat_ultralytics(tmp_path / "in", prefix=prefix)
    assert_objects(made(tmp_path / "in", tmp_path), IMAGES, in_train=False)


def test_subsets_of_a_cvat_project_go_by_their_names(tmp_path: Path) -> None:
    exports.cvat_ultralytics(tmp_path / "in")
    file = tmp_path / "in" / "data.yaml"
    text = file.read_text().replace("train: train.txt", "Train: train.txt")
    file.write_text(text.replace("val: val.txt", "Validation: val.txt"))
    assert_objects(made(tmp_path / "in", tmp_path), IMAGES, in_train=False)
    file.write_text(text + "batch: val.txt\n")
    with pytest.raises(InputError, match=r"batch: val.txt lists images of a subset that is none"):
        made(tmp_path / "in", tmp_path)


def test_keypoints_keep_their_form(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path / "in", train="images/train", kpt_shape=[1, 3], flip_idx=[0])
    for label in (tmp_path / "in" / "labels").rglob("*.txt"):
        label.write_text("".join(f"{x} .5 .5 2\n" for x in label.read_text().splitlines()))
    prepared = made(tmp_path / "in", tmp_path, val_fraction=0.4)
    data = read_data(prepared.path, "pose", where="x")
    assert (data["kpt_shape"], data["flip_idx"]) == ([1, 3], [0])


@pytest.mark.parametrize(
    "form",
    [
        {"train": "images/train", "val": "images/val"},
        {"train": "../images/train", "val": "../images/val", "test": "../images/test"},
        {"train": "list.txt", "val": "images/val"},
        {"train": "images/train", "val": "images/gone"},  # its own message says so
        {"train": "images/train", "val": "images/val", "names": ["a", "a"]},
    ],
)
def test_a_plain_data_yaml_stays_the_users_own(tmp_path: Path, form: dict[str, Any]) -> None:
    exports.ultralytics(tmp_path, **form)
    write_text(tmp_path / "list.txt", "./images/train/a.jpg\n")
    for path in (tmp_path, tmp_path / "data.yaml"):
        assert [f.name for f in FORMATS if f.matches(path)] == []
        assert made(path, tmp_path / "out") == Prepared(tmp_path / "data.yaml")


def test_where_ultralytics_looks_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.ultralytics(tmp_path / "in", path=".", train="images/train", val="images/val")
    exports.ultralytics(tmp_path / "cwd", IMAGES[:1] + IMAGES[3:])
    assert yolo.is_data_yaml(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "cwd")
    assert not yolo.is_data_yaml(tmp_path / "in")


@pytest.mark.parametrize("name", ["dataset.yaml", "blood.yml"])
def test_a_folders_yaml_may_have_another_name(tmp_path: Path, name: str) -> None:
    exports.ultralytics(tmp_path, train="images/train", val="images/val")
    (tmp_path / "data.yaml").rename(tmp_path / name)
    write_text(tmp_path / "settings.yaml", "a: 1\n")
    assert made(tmp_path, tmp_path / "out").path == tmp_path / name


def test_a_yaml_without_val_can_have_one_made(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path / "in", train="images/train")
    with pytest.raises(InputError, match=r"data.yaml: .* without a val split; val_fraction"):
        made(tmp_path / "in", tmp_path)
    prepared = made(tmp_path / "in", tmp_path, val_fraction=0.4)
    assert prepared.made
    assert set(prepared.made.images) == {"train", "val"}


@pytest.mark.parametrize("write", [exports.cvat_ultralytics, exports.cvat_darknet])
def test_cvat_without_images_names_the_box_to_tick(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write(tmp_path, save=False)
    with pytest.raises(InputError, match="export with 'Save images'"):
        made(tmp_path, tmp_path / "out")


def test_label_studio_without_images_names_the_export(tmp_path: Path) -> None:
    exports.label_studio(tmp_path, save=False)
    with pytest.raises(InputError, match="export as 'YOLO with Images'"):
        made(tmp_path, tmp_path / "out")


def test_names_that_differ_are_refused(tmp_path: Path) -> None:
    exports.label_studio(tmp_path / "a")
    write_text(tmp_path / "a" / "classes.txt", "dog\ncat\na fox")
    with pytest.raises(InputError, match="in the order of its ids, so that an index means two"):
        made(tmp_path / "a", tmp_path)
    exports.labelimg(tmp_path / "b", folders=True)
    write_text(tmp_path / "b" / "valid" / "classes.txt", "dog\ncat\na fox")
    with pytest.raises(InputError, match=r"its names \[dog, cat, a fox\] differ from those of"):
        made(tmp_path / "b", tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cat\ndog\n", r"a.txt: line 2: class 2, and .* has 2 names \[cat, dog\]"),
        ("cat\n\ndog\nfox\n", r"classes.txt: line 2 is blank"),
        ("cat\ncat\nfox\n", r"classes.txt: 'cat' is listed twice"),
    ],
)
def test_a_list_of_names_that_does_not_fit_is_refused(tmp_path: Path, text: str, line: str) -> None:
    exports.labelimg(tmp_path)
    write_text(tmp_path / "classes.txt", text)
    with pytest.raises(InputError, match=line):
        made(tmp_path, tmp_path / "out", val_fraction=0.4)


def test_images_that_share_a_label_file_are_refused(tmp_path: Path) -> None:
    exports.labelimg(tmp_path)
    exports.draw(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.jpg and a.png have the same label file a.txt"):
        made(tmp_path, tmp_path / "out")


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    exports.cvat_ultralytics(tmp_path)
    with (tmp_path / "val.txt").open("a") as file:
        file.write("images/train/a.jpg\n")
    with pytest.raises(InputError, match=r"train.txt: line 1 and val.txt: line 2 are the same"):
        made(tmp_path, tmp_path / "out")


def test_a_line_of_no_image_is_named(tmp_path: Path) -> None:
    exports.cvat_ultralytics(tmp_path)
    (tmp_path / "images" / "train" / "ü.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 listed images are not below .* in line 3 \(imag"):
        made(tmp_path, tmp_path / "out")


def test_numbers_of_tracks_are_refused(tmp_path: Path) -> None:
    exports.cvat_ultralytics(tmp_path)
    write_text(tmp_path / "labels" / "train" / "a.txt", "0 .5 .5 .1 .1 7\n")
    with pytest.raises(InputError, match=r"a.txt: line 1: 6 numbers, expected 5 of a box"):
        made(tmp_path, tmp_path / "out")


def test_objects_of_no_image_are_counted(tmp_path: Path) -> None:
    exports.darknet(tmp_path / "in")
    (tmp_path / "in" / "train" / "images" / "a.jpg").unlink()
    prepared = made(tmp_path / "in", tmp_path)
    assert prepared.made
    assert prepared.made.left_out == {"a label file of no image in a split": {"cat": 1, "a fox": 1}}


def test_labels_without_names_get_a_next_step(tmp_path: Path) -> None:
    exports.darknet(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"write .*classes.txt with one name a line"):
        made(tmp_path, tmp_path / "out")


def test_ndjson_whose_images_are_elsewhere_names_the_command(tmp_path: Path) -> None:
    exports.ndjson(tmp_path, save=False)
    for act in (
        lambda: made(tmp_path / "x.ndjson", tmp_path / "out"),
        lambda: read_data(tmp_path / "x.ndjson", "detect", where="x"),
    ):
        with pytest.raises(InputError, match=r"pip install aiohttp && python -c ") as error:
            act()
        code = re.search(r'python -c "(.*?)" (\S+) (\S+), and give', str(error.value))
        assert code
        assert code.group(2) == str(tmp_path / "x.ndjson")
        compile(code.group(1), "command", "exec")


def test_ndjson_of_any_task_is_read(tmp_path: Path) -> None:
    exports.draw(tmp_path / "in" / "a.jpg")
    corners = [1, 0.1, 0.1, 0.5, 0.1, 0.5, 0.5, 0.1, 0.5]
    for task, kind, label in (
        ("segment", "segments", corners[:7]),
        ("obb", "obb", corners),
        ("pose", "pose", [1, 0.5, 0.5, 0.2, 0.2, 0.4, 0.4, 2]),
    ):
        header = {"type": "dataset", "task": task, "class_names": {"1": "dog"}}
        header |= {"kpt_shape": [1, 3]} if task == "pose" else {}
        record = {"file": "a.jpg", "split": "train", "annotations": {kind: [label]}}
        write_text(tmp_path / "in" / "x.ndjson", f"{json.dumps(header)}\n{json.dumps(record)}\n")
        content = ndjson.read_ndjson(tmp_path / "in" / "x.ndjson")
        assert content.names == ("class0", "dog")
        assert task_of(content)[0] == task
        write_labels(content, tmp_path / task, task)
        (line,) = (tmp_path / task / "labels" / "train" / "a.txt").read_text().splitlines()
        assert [float(n) for n in line.split()] == pytest.approx(label)


@pytest.mark.parametrize("case", ["cvat_ul_proj", "ls_yolo", "labelimg_yolo"])
def test_cases(case: str, tmp_path: Path) -> None:
    folder = truths.FORMATS / case
    if not folder.is_dir():
        pytest.skip("shared/cases/formats is not here")
    prepared = made(folder, tmp_path, val_fraction=0.2)
    truths.assert_truth(prepared.path, json.loads((folder / "truth.json").read_text()))


def test_archives_keep_their_line(tmp_path: Path) -> None:
    for name in ("x.zip", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"PK")
        assert made(tmp_path / name, tmp_path / "out") == Prepared(tmp_path / name)
        with pytest.raises(InputError, match="an archive; unpack it"):
            read_data(tmp_path / name, "detect", where="x")


def test_two_images_of_one_name_keep_their_own_labels(tmp_path: Path) -> None:
    images = (
        Drawn("p/a.jpg", ((0, (1, 1, 5, 5)),)),
        Drawn("q r/a.jpg", ((1, (2, 2, 9, 9)),)),
        Drawn("v.jpg", ((0, (1, 1, 5, 5)),), "val"),
    )
    for write in exports.WITH_SPLITS:
        if write is exports.ndjson:  # its names have no folders
            continue
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        write(root, images)
        folder = made(root, tmp_path).path.parent
        for drawn in images[:2]:
            found = [
                label.read_text()
                for label in (folder / "labels" / "train").rglob("*.txt")
                if label.resolve().parent.name == Path(drawn.name).parent.name
            ]
            assert found == [exports.lines_of(drawn)]
