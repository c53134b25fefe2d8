"""Objects of a written data set, read back by plain arithmetic, to compare with what they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image, ImageOps

Box = tuple[float, float, float, float]
FORMATS = Path(__file__).resolve().parents[3] / "shared" / "cases" / "formats"


def boxes_of(data_yaml: Path) -> dict[str, dict[str, list[tuple[str, Box]]]]:
    """For each split, class and box (left, top, right, bottom in pixels) of all objects by image.

    Images go by the names of the files that they lead to.
    """
    data = yaml.safe_load(data_yaml.read_text())
    found: dict[str, dict[str, list[tuple[str, Box]]]] = {}
    for split in (s for s in ("train", "val", "test") if s in data):
        folder = data_yaml.parent / data[split]
        images = sorted(p for p in folder.rglob("*") if p.is_file())
        found[split] = {}
        for image in images:
            label = data_yaml.parent / "labels" / image.relative_to(data_yaml.parent / "images")
            with Image.open(image) as opened:
                size = ImageOps.exif_transpose(opened).size
            objects = _boxes(label.with_suffix(".txt"), size, data["names"])
            name = image.resolve().name
            assert name not in found[split], f"two images {name}: compare by folders"
            found[split][name] = objects
    return found


def _boxes(label: Path, size: tuple[int, int], names: Mapping[int, str]) -> list[tuple[str, Box]]:
    if not label.exists():
        return []
    boxes = []
    for line in label.read_text().splitlines():
        number, *numbers = line.split()
        values = [float(n) for n in numbers]
        if len(values) == 4:
            x, y, w, h = values
            edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        else:
            edges = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        width, height = size
        left, top, right, bottom = edges
        box = (left * width, top * height, right * width, bottom * height)
        boxes.append((names[int(number)], box))
    return boxes


def assert_same_objects(
    found: Sequence[tuple[str, Box]], expected: Sequence[tuple[str, Box]], within: float = 0.01
) -> None:
    """Same classes and boxes in any order; within: pixels by which an edge may differ."""
    left = list(found)
    for name, box in expected:
        twin = next(
            (
                other
                for other in left
                if other[0] == name
                and all(abs(a - b) <= within for a, b in zip(other[1], box, strict=True))
            ),
            None,
        )
        assert twin is not None, f"no {name} at {box} among {left}"
        left.remove(twin)
    assert not left, f"not expected: {left}"


def assert_truth(data_yaml: Path, truth: Mapping[str, object], within: float = 0.01) -> None:
    """A written data set has exactly the objects of a truth.json of shared/cases/formats."""
    data = yaml.safe_load(data_yaml.read_text())
    assert [*data["names"].values()] == truth["names"]
    found = {n: objects for split in boxes_of(data_yaml).values() for n, objects in split.items()}
    images: Sequence[Mapping[str, object]] = truth["ims"]  # pyright: ignore
    assert {_plain(str(i["name"])) for i in images} == {_plain(n) for n in found}
    by_name = {_plain(name): objects for name, objects in found.items()}
    for image in images:
        expected = [(name, tuple(box)) for name, box in image["objs"]]  # pyright: ignore
        assert_same_objects(by_name[_plain(str(image["name"]))], expected, within)


def _plain(name: str) -> str:
    """The file name without what Label Studio puts before a name: 3f2a1b-NAME."""
    name = Path(name).name
    head, dash, rest = name.partition("-")
    return rest if dash and len(head) in (6, 8) else name
