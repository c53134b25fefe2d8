"""The data set `digits` is the same whoever makes it, and its splits are what they are called."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import digits
from federated_yolo.common.errors import InputError

FEW = {"train": 30, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn", reason="needs scikit-learn, which only this benchmark does")
    return digits.make_digits(tmp_path_factory.mktemp("digits") / "one", FEW)


def digest(folder: Path) -> str:
    """Of all files, and of their places below the folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def test_it_is_the_same_each_time(made: Path, tmp_path: Path) -> None:
    again = digits.make_digits(tmp_path / "two", FEW)
    assert digest(again) == digest(made)
    assert not (tmp_path / "two.partial").exists()
    with pytest.raises(InputError, match="two: exists; remove it"):
        digits.make_digits(again, FEW)


def train_list(client: Path) -> list[str]:
    lines = (client / "train.txt").read_text().splitlines()
    assert all((client / line).is_file() for line in lines)
    return [Path(line).name for line in lines]


def main_class(made: Path, image: str) -> int:
    """Of the class that an image has most, the first of several, by its labels."""
    rows = (made / "labels/train" / image).with_suffix(".txt").read_text().splitlines()
    counts = Counter(int(row.split()[0]) for row in rows)
    return min(counts, key=lambda index: (-counts[index], index))


def test_each_split_gives_each_image_to_one_client(made: Path) -> None:
    every = sorted(path.name for path in (made / "images/train").iterdir())
    assert len(every) == 30
    sizes = {}
    for split in sorted((made / "fed").iterdir()):
        lists = [train_list(client) for client in sorted(split.iterdir())]
        assert sorted(name for names in lists for name in names) == every
        sizes[split.name] = [len(names) for names in lists]
    assert sizes["iid3"] == [10, 10, 10]
    assert sizes["unequal_70_20_10"] == [21, 6, 3]
    assert sizes["domain5"] == [6] * 5
    assert len(sizes["unlike3"]) == 3


def test_unlike_clients_have_two_classes_each_and_domains_one_background(made: Path) -> None:
    for number in range(3):
        names = train_list(made / f"fed/unlike3/client_{number}")
        assert {main_class(made, name) // 2 for name in names} == {number}
    for number in range(5):
        names = train_list(made / f"fed/domain5/client_{number}")
        assert {int(name[len("train_") :].split(".")[0]) % 5 for name in names} == {number}


def test_every_image_shows_something_and_all_boxes_are_inside(made: Path) -> None:
    for path in (made / "labels").rglob("*.txt"):
        rows = [list(map(float, row.split())) for row in path.read_text().splitlines()]
        assert 1 <= len(rows) <= 5
        for index, x, y, width, height in rows:
            assert index in range(6)
            assert min(x - width / 2, y - height / 2) >= -1e-4
            assert max(x + width / 2, y + height / 2) <= 1 + 1e-4


def test_without_scikit_learn_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs scikit-learn.*pip install scikit-learn"):
        digits.make_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
