"""A val split has no twins of train images; sizes have to be those of the images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import Content, Object, Picture
from federated_yolo.data.exports.sizes import rescaled, size_problems
from federated_yolo.data.exports.split import with_val


def images(folder: Path, num: int, copies: int = 1) -> list[Picture]:
    """So many images that are unlike each other, with near-duplicates of each."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(num):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        for copy in range(copies):
            path = folder / f"{number}_{copy}.png"
            image = Image.fromarray(pixels).resize((64, 48))
            Image.fromarray(np.asarray(image) // 2 + 10 * copy).save(path)
            pictures.append(Picture(path, size=(64, 48), entry=f"images.{number}"))
    return pictures


def content(folder: Path, pictures: Sequence[Picture]) -> Content:
    return Content("test", folder, ("a",), {"train": pictures}, file=folder / "x.json")


def stems(content: Content, split: str) -> set[str]:
    return {picture.path.stem for picture in content.splits[split]}


def test_a_share_of_the_images_becomes_val_the_same_with_the_same_seed(tmp_path: Path) -> None:
    whole = content(tmp_path, images(tmp_path, 20))
    first, again, other = (with_val(whole, 0.2, seed) for seed in (0, 0, 1))
    assert (len(first.splits["train"]), len(first.splits["val"])) == (16, 4)
    assert stems(first, "train") | stems(first, "val") == stems(whole, "train")
    assert stems(first, "val") == stems(again, "val") != stems(other, "val")
    assert first.notes == (
        "4 of 20 images become the val split (seed 0, near-duplicates together)",
    )


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    made = with_val(content(tmp_path, images(tmp_path, 10, copies=3)), 0.3, 0)
    train, val = ({stem.partition("_")[0] for stem in stems(made, s)} for s in ("train", "val"))
    assert len(val) == 3
    assert not train & val


def test_folders_stay_whole_where_there_are_enough(tmp_path: Path) -> None:
    pictures = []
    for number in range(10):
        folder = tmp_path / f"cam{number}"
        folder.mkdir()
        for picture in images(tmp_path / "all", 20)[2 * number : 2 * number + 2]:
            moved = picture.path.rename(folder / picture.path.name)
            pictures.append(replace(picture, path=moved))
    made = with_val(content(tmp_path, pictures), 0.2, 0)
    train, val = ({p.path.parent for p in made.splits[s]} for s in ("train", "val"))
    assert len(val) == 2
    assert not train & val


def test_images_that_are_all_alike_make_no_val_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no val split can be made of its 6 images"):
        with_val(content(tmp_path, images(tmp_path, 1, copies=6)), 0.2, 0)


def test_a_val_split_that_there_is_stays(tmp_path: Path) -> None:
    pictures = images(tmp_path, 4)
    whole = replace(
        content(tmp_path, pictures[:3]), splits={"train": pictures[:3], "val": pictures[3:]}
    )
    assert with_val(whole, 0.5, 0) == whole


def test_sizes_that_are_those_of_the_images_are_no_problem(tmp_path: Path) -> None:
    assert not list(size_problems(content(tmp_path, images(tmp_path, 3))))


def test_one_factor_for_all_images_is_offered_and_taken(tmp_path: Path) -> None:
    o = Object("a", (2, 4, 6, 8), (((2, 4), (6, 4), (6, 8)),), ((2, 4),) * 4, ((2, 4, 1),))
    pictures = [replace(p, size=(32, 24), objects=(o,)) for p in images(tmp_path, 3)]
    wrong = content(tmp_path, pictures)
    (problem,) = size_problems(wrong)
    assert "images.0: 0_0.png is 64 x 48 pixels, and the export says 32 x 24" in problem
    assert "all 3 images are 2 times as large as in the export" in problem
    assert "--rescale" in problem
    assert not list(size_problems(wrong, rescale=True))
    (found,) = rescaled(wrong).splits["train"][0].objects
    assert found == Object(
        "a", (4, 8, 12, 16), (((4, 8), (12, 8), (12, 16)),), ((4, 8),) * 4, ((4, 8, 1),)
    )


def test_sizes_that_are_wrong_in_different_ways_are_refused_in_any_case(tmp_path: Path) -> None:
    first, second, third = images(tmp_path, 3)
    wrong = content(
        tmp_path, [replace(first, size=(32, 24)), replace(second, size=(64, 47)), third]
    )
    for rescale in (False, True):
        found = list(size_problems(wrong, rescale=rescale))
        assert len(found) == 2
        assert "64 x 48 pixels, and the export says 64 x 47, so that its objects" in found[1]


def test_an_image_that_was_annotated_before_its_exif_turn_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "x.jpg"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path, exif=exif)
    assert not list(size_problems(content(tmp_path, [Picture(path, size=(48, 64))])))
    (problem,) = size_problems(content(tmp_path, [Picture(path, size=(64, 48))]))
    assert "a camera's EXIF tag turns the image, and it was annotated unturned" in problem
