"""Exports with a file for each image, and tables: every object comes out where it was."""

import unicodedata
from pathlib import Path

import pytest
import truths
from exports_per_image import Drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from read_per_image import FORMATS, IMAGES, NAMES, WRITERS, boxes, prepared, read


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_recognised_and_gives_back_its_objects(kind: str, tmp_path: Path) -> None:
    write, name = WRITERS[kind]
    write(tmp_path / "data", IMAGES, NAMES)
    assert [known.name for known in FORMATS if known.matches(tmp_path / "data")] == [name]
    out = prepared(tmp_path / "data", tmp_path / "out")
    assert out.made
    assert out.made.task == "detect"
    assert not out.made.left_out
    found = truths.boxes_of(out.path)
    for split in ("train", "val"):
        drawn = [image for image in IMAGES if image.split == split]
        assert set(found[split]) == {image.place for image in drawn}
        for image in drawn:
            truths.assert_same_objects(found[split][image.place], image.objects)


def test_classes_are_in_the_order_of_the_export_or_of_their_names(tmp_path: Path) -> None:
    for kind, (write, _) in WRITERS.items():
        write(tmp_path / kind, IMAGES, NAMES)
        listed = kind in ("cvat_voc", "supervisely", "datumaro", "cvat", "open_images")
        assert read(tmp_path / kind).names == (NAMES if listed else tuple(sorted(NAMES)))


letters = st.text(st.sampled_from("ab Ü#%日.é&'"), min_size=1, max_size=6).filter(
    lambda text: text.strip(" .") == text and text != "" and ".." not in text
)
folders = st.sampled_from(["", "one/", "two/", "one/images/"])


@st.composite
def exports(draw: st.DrawFn) -> tuple[list[Drawn], list[str]]:
    """Images of any names, with the same in several folders, and classes in any order."""
    names = draw(st.lists(letters, min_size=1, max_size=3, unique_by=str.casefold))
    stems = draw(st.lists(letters, min_size=1, max_size=2))
    places = draw(
        st.lists(
            st.tuples(folders, st.sampled_from(stems)),
            min_size=1,
            max_size=4,
            unique_by=lambda p: unicodedata.normalize("NFC", p[0] + p[1]).casefold(),
        )
    )
    images = []
    for folder, name in places:
        width, height = draw(st.tuples(st.integers(8, 40), st.integers(8, 40)))
        objects = []
        for _ in range(draw(st.integers(1, 3))):
            left, top = draw(st.tuples(st.integers(0, width - 2), st.integers(0, height - 2)))
            right = draw(st.integers(left + 1, width))
            bottom = draw(st.integers(top + 1, height))
            objects.append((draw(st.sampled_from(names)), (left, top, right, bottom)))
        ending = draw(st.sampled_from(["jpg", "PNG"]))
        split = draw(st.sampled_from(["train", "val"]))
        images.append(Drawn(f"{folder}{name}.{ending}", split, (width, height), tuple(objects)))
    return images, names


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(exports())
def test_names_of_any_kind_keep_their_objects(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[Drawn], list[str]]
) -> None:
    images, names = case
    for kind, (write, _) in WRITERS.items():
        if kind == "open_images":  # its images go by their names alone
            continue
        folder = tmp_path_factory.mktemp("any")
        write(folder, images, names)
        content = read(folder)
        found = boxes(content)
        assert len(found) == len(images), kind
        for drawn in images:
            (key,) = [k for k in found if k.startswith(f"{drawn.split}:") and _ends(k, drawn)]
            truths.assert_same_objects(found[key], drawn.objects)  # pyright: ignore
        assert set(content.names) >= {n for drawn in images for n, _ in drawn.objects}


def _ends(key: str, drawn: Drawn) -> bool:
    """Whether the image lies directly in a folder of images, in the one that was drawn."""
    place = key.partition(":")[2]
    for start in ("JPEGImages/", "images/Train/", "images/Validation/", "images/train/",
                  "images/val/", "train/img/", "val/img/", "train/", "val/", "valid/"):  # fmt: skip
        if place.startswith(start):
            return place.removeprefix(start) == drawn.place
    return False
