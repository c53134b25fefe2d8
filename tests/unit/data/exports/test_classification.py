"""Classification exports: each image in the folder of its class, or a line that says what to do."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import exports_yolo as exports
import pytest
import yaml
from exports_yolo import write_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_class_folders
from federated_yolo.data.exports import classification
from federated_yolo.data.exports.convert import Options, Prepared, prepare
from federated_yolo.data.exports.made import naming_originals
from federated_yolo.data.exports.recognise import recognise
from federated_yolo.data.scan import check_dataset

IMAGES = {"cat": 6, "dog": 5, "a fox": 2}


def made(root: Path, target: Path, **options: object) -> Prepared:
    return prepare(root, target, "north", Options(**options), where="x")  # pyright: ignore


def folders(root: Path, images: Mapping[str, int] = IMAGES) -> None:
    """Class folders with so many images."""
    for name, num in images.items():
        for number in range(num):
            exports.draw(root / name / f"{number} {name}.jpg")


def classes_of(prepared: Prepared) -> dict[str, dict[str, list[str]]]:
    """For each split and class, the images that links lead to."""
    found: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "val", "test"):
        for folder in sorted((prepared.path / split).glob("*")):
            links = sorted(str(p.readlink()) for p in folder.rglob("*") if p.is_symlink())
            found.setdefault(split, {})[folder.name] = links
    return found


def images_in(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*.jpg"))


def test_test_is_val_where_there_is_none_as_in_ultralytics(tmp_path: Path) -> None:
    root = tmp_path / "in"
    folders(root / "train")
    folders(root / "test", {"dog": 2, "a fox": 1})
    prepared = made(root, tmp_path)
    assert prepared.made
    assert prepared.made.notes == ("test/ is the val split, as Ultralytics takes it",)
    assert classes_of(prepared) == {
        "train": {name: images_in(root / "train" / name) for name in sorted(IMAGES)},
        "val": {name: images_in(root / "test" / name) for name in sorted(IMAGES)},
    }
    data = read_class_folders(prepared.path, where="x")
    assert data["names"] == {0: "a fox", 1: "cat", 2: "dog"}
    summary = check_dataset(
        prepared.path, "classify", tmp_path / "c", where="x", splits=("train", "val")
    )
    assert (summary.num_train, summary.num_val, summary.class_counts) == (13, 3, (2, 6, 5))


@pytest.mark.parametrize("place", [".", "train", "Training"])
def test_a_val_split_is_made_of_each_class(tmp_path: Path, place: str) -> None:
    root = tmp_path / "in"
    folders(root / place)
    with pytest.raises(InputError, match=r"class folders without a val split; val_fraction=0.2"):
        made(root, tmp_path)
    found = classes_of(made(root, tmp_path, val_fraction=0.2))
    assert {name: len(files) for name, files in found["val"].items()} == {
        "a fox": 1,
        "cat": 1,
        "dog": 1,
    }
    for name in IMAGES:
        both = sorted(found["train"][name] + found["val"][name])
        assert both == images_in(root / place / name)


def test_near_duplicates_stay_together_and_no_class_loses_its_last_train_image(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    folders(root, {"cat": 6, "dog": 1})
    for number in range(5):
        (root / "cat" / f"same {number}.jpg").write_bytes((root / "cat" / "0 cat.jpg").read_bytes())
    for seed in range(5):
        found = classes_of(made(root, tmp_path, val_fraction=0.5, seed=seed))
        alike = {Path(p).name for p in found["val"]["cat"]} & {
            "0 cat.jpg",
            *(f"same {n}.jpg" for n in range(5)),
        }
        assert len(alike) in (0, 6)
        assert [len(found[s]["dog"]) for s in ("train", "val")] == [1, 0]


def test_ordinary_class_folders_stay_the_users_own(tmp_path: Path) -> None:
    for val in ("val", "validation", "valid"):
        root = tmp_path / val
        folders(root / "train")
        folders(root / val)
        write_text(root / "labels.csv", "filename,label\n0 cat.jpg,cat\n")
        assert recognise(root) is None
        assert made(root, tmp_path / "out") == Prepared(root)


@pytest.mark.parametrize("file", ["images/a.xml", "cat/a.json", "annotations.json", "cat/a.txt"])
def test_folders_with_annotations_are_no_classes(tmp_path: Path, file: str) -> None:
    folders(tmp_path)
    write_text(tmp_path / file, "")
    assert not classification.is_class_folders(tmp_path)


def test_roboflows_table_is_read(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for split in ("train", "valid"):
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            exports.draw(root / split / name)
        text = "filename, dog, a fox, Unlabeled\na.jpg, 1, 0, 0\nb.jpg, 0, 1, 0\nc.jpg, 0, 0, 1\n"
        write_text(root / split / "_classes.csv", text)
    prepared = made(root, tmp_path)
    assert prepared.made
    assert prepared.made.left_out == {"unlabelled in the export": {"no class": 2}}
    assert classes_of(prepared) == {
        split: {"a fox": [str(root / old / "b.jpg")], "dog": [str(root / old / "a.jpg")]}
        for split, old in (("train", "train"), ("val", "valid"))
    }
    write_text(root / "train" / "_classes.csv", "filename, dog, cat\na.jpg, 1, 1\n")
    with pytest.raises(InputError, match=r"row 2: a.jpg is of 2 classes \(dog, cat\), and Ultral"):
        made(root, tmp_path)


cells = st.text("aZ0 ü#%,_é\"'", min_size=1, max_size=6).map(lambda t: f"n{t.strip()}x")


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.lists(
        st.tuples(st.sampled_from(["", "p/", "q r/"]), cells), min_size=2, max_size=5, unique=True
    ),
    classes=st.lists(st.sampled_from(["z", "a b", "é", "10"]), min_size=5, max_size=5),
    columns=st.sampled_from([("filename", "label"), ("image", "Class"), ("path", "category")]),
)
def test_a_table_of_any_names_is_read(
    files: list[tuple[str, str]], classes: list[str], columns: tuple[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        expected: dict[str, list[str]] = defaultdict(list)
        rows = []
        for (place, name), label in zip(files, classes, strict=False):
            exports.draw(root / "images" / f"{place}{name}.jpg")
            expected[label].append(str(root / "images" / f"{place}{name}.jpg"))
            quoted = f"{place}{name}.jpg".replace('"', '""')
            rows.append(f'"{quoted}",train,{label}\n')
        exports.draw(root / "images" / "last.jpg")
        rows.append(f"last.jpg,val,{classes[0]}\n")
        header = f"\ufeff{columns[0]},split,{columns[1]}\n"
        write_text(root / "labels.csv", header + "".join(rows))
        found = classes_of(made(root, Path(folder)))
        assert found["train"] == {name: sorted(paths) for name, paths in expected.items()}


def test_kaggles_table_beside_train_is_read(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a", "b", "c", "d"):
        exports.draw(root / "train" / f"{name}.png")
        exports.draw(root / "test" / f"{name}.png")
    write_text(root / "train.csv", "id_code,diagnosis\na,0\nb,1\nc,0\nd,1\n")
    write_text(root / "sample_submission.csv", "id_code,diagnosis\na,0\n")
    prepared = made(root, tmp_path, val_fraction=0.5)
    assert prepared.made
    assert prepared.made.objects == {"train": {"0": 1, "1": 1}, "val": {"0": 1, "1": 1}}
    assert prepared.made.notes[0] == "4 images have no row and are left out"
    links = [
        link for split in classes_of(prepared).values() for of in split.values() for link in of
    ]
    assert {Path(link).parent.name for link in links} == {"train"}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("a.jpg,cat|dog\n", r"row 2: label 'cat\|dog': expected one class"),
        ("a.jpg,cat\na.jpg,dog\n", r"row 2 and .*row 3 are both of a.jpg \(cat and dog\)"),
        ("a.jpg,cat\nz.jpg,dog\n", r"row 3: filename 'z.jpg': there is none below"),
        ("a.jpg,cat\nb.jpg,c/d\n", r"class 'c/d' cannot be the name of a folder"),
        ("a.jpg,cat\nb.jpg,Cat\n", r"class 'Cat' differs from another only in upper and lower"),
        ("a.jpg,cat,3\n", r"row 2: 3 cells, expected 2"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(tmp_path: Path, rows: str, line: str) -> None:
    exports.draw(tmp_path / "a.jpg")
    exports.draw(tmp_path / "b.jpg")
    exports.draw(tmp_path / "val" / "v.jpg")
    write_text(tmp_path / "labels.csv", f"filename,label\n{rows}val/v.jpg,cat\n")
    with pytest.raises(InputError, match=line):
        made(tmp_path, tmp_path / "out")


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    folders(tmp_path / "a" / "train")
    folders(tmp_path / "a" / "test")
    exports.cvat_ultralytics(tmp_path / "b")
    with pytest.raises(InputError, match="base_model is of the task detect; take a base_model of"):
        made(tmp_path / "a", tmp_path / "out", task="detect")
    with pytest.raises(InputError, match=r"or give folders of train/CLASS/\*.jpg"):
        made(tmp_path / "b", tmp_path / "out", task="classify")


def test_a_damaged_image_is_told_by_the_users_file(tmp_path: Path) -> None:
    root = tmp_path / "in"
    folders(root / "train")
    folders(root / "test")
    (root / "train" / "cat" / "0 cat.jpg").write_bytes(b"no image")
    prepared = made(root, tmp_path)
    with (
        pytest.raises(InputError, match=r"in/train/cat/0 cat\.jpg:") as error,
        naming_originals(prepared.path),
    ):
        check_dataset(prepared.path, "classify", tmp_path / "c", where="x", splits=("train", "val"))
    assert str(prepared.path) not in str(error.value)


def test_ndjson_of_classes_is_read_also_as_ultralytics_makes_it(tmp_path: Path) -> None:
    root = tmp_path / "in"
    records: list[object] = [{"task": "classify", "class_names": {"0": "dog", "7": "cat"}}]
    for number, split in enumerate(("train", "train", "val")):
        exports.draw(root / f"{number}.jpg")
        annotations = {"classification": [7 * (number % 2)]}
        records.append({"file": f"{number}.jpg", "split": split, "annotations": annotations})
    exports.draw(root / "3.jpg")
    records.append({"file": "3.jpg", "split": "val", "annotations": {}})
    write_text(root / "x.ndjson", "".join(f"{json.dumps(r)}\n" for r in records))
    prepared = made(root, tmp_path)
    assert prepared.made
    assert prepared.made.objects == {"train": {"dog": 1, "cat": 1}, "val": {"dog": 1}}
    assert sum(n for of in prepared.made.left_out.values() for n in of.values()) == 1

    for split in ("train", "val"):
        folders(tmp_path / "made" / split, {"000000": 2, "000001": 1})
    text = yaml.safe_dump({"names": {0: "dog", 1: "cat"}})
    write_text(tmp_path / "made" / ".ndjson.yaml", text)
    found = classes_of(made(tmp_path / "made", tmp_path))
    assert found["val"] == {
        "cat": images_in(tmp_path / "made" / "val" / "000001"),
        "dog": images_in(tmp_path / "made" / "val" / "000000"),
    }


def test_two_images_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for place in ("p", "q r", "val"):
        exports.draw(tmp_path / "in" / place / "a.jpg")
    write_text(tmp_path / "in" / "l.csv", "file,label\np/a.jpg,cat\nq r/a.jpg,cat\nval/a.jpg,cat\n")
    found = classes_of(made(tmp_path / "in", tmp_path))
    assert found["train"]["cat"] == images_in(tmp_path / "in" / "p") + images_in(
        tmp_path / "in" / "q r"
    )
