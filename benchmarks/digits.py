"""Make `digits`, a data set of objects to detect that everybody can make again, byte for byte.

    python benchmarks/digits.py DIR

Handwritten digits of six classes, at random places, sizes, angles and colours, on backgrounds of
five kinds; 192 px, 250 train, 80 val and 160 test images. The digits are those of scikit-learn,
which only this needs (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI 1998,
CC BY 4.0). DIR, which must not exist, gets images/, labels/, all/data.yaml and, by client,
fed/SPLIT/client_K/data.yaml:

    iid3              alike: every third image
    unlike3           an image is where the class is at home that it shows most; two classes each
    domain5           each client has its own kind of background
    unequal_70_20_10  alike, of 70, 20 and 10 % of the images

val and test are common and have all classes and backgrounds.
"""

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import yaml
from PIL import Image
from PIL.Image import Resampling

from federated_yolo.common.command_line import Parser, show_problems
from federated_yolo.common.errors import InputError

NAMES = ("zero", "one", "two", "three", "four", "five")
NUM_IMAGES = {"train": 250, "val": 80, "test": 160}
SIZE = 192  # pixels, of a side
NUM_KINDS = 5  # of background
TEXTURES = (
    Resampling.BILINEAR,
    Resampling.NEAREST,
    Resampling.BICUBIC,
    Resampling.BILINEAR,
    Resampling.NEAREST,
)
SEED = 0
INK = 0.35  # of 1: what counts as the digit where its box is drawn

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Picture:
    """An image to be. pixels: (SIZE, SIZE, 3) float64 from 0 to 1. kind: of its background.

    boxes: class index, then x and y of the centre, width and height in pixels.
    """

    pixels: Array
    kind: int
    boxes: tuple[tuple[int, float, float, int, int], ...]

    @property
    def main_class(self) -> int:
        """The class that it shows most, the first of several."""
        classes = [box[0] for box in self.boxes]
        return max(sorted(set(classes)), key=classes.count)


def main() -> int:
    """Make the data set that the command line asks for."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    options: argparse.Namespace = parser.parse_args()
    try:
        print(make_digits(options.folder))
    except InputError as error:
        show_problems(error.problems)
        return 2
    return 0


def make_digits(folder: Path, num_images: Mapping[str, int] = NUM_IMAGES) -> Path:
    """Make the data set and return its folder, which is there as a whole or not at all.

    num_images: by split. Raises InputError if the folder exists, or without scikit-learn.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists; remove it, or give another folder")
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "digits: needs scikit-learn, which is not installed: pip install scikit-learn"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    digits = read_digits()
    pictures: dict[str, Picture] = {}
    for split_number, (split, number) in enumerate(num_images.items()):
        for kind in ("images", "labels"):
            (partial / kind / split).mkdir(parents=True)
        for index in range(number):
            random = np.random.default_rng((SEED, split_number, index))
            picture = draw(digits, index % NUM_KINDS, random)
            save(picture, partial, split, f"{split}_{index:04d}")
            if split == "train":
                pictures[f"{split}_{index:04d}.png"] = picture
    write_data_yaml(partial / "all", "../images/train")
    for split, clients in splits_of(pictures).items():
        for number, names in enumerate(clients):
            client = partial / "fed" / split / f"client_{number}"
            write_data_yaml(client, "train.txt")
            # Ultralytics reads ./ as relative to the list.
            lines = "".join(f"./../../../images/train/{name}\n" for name in names)
            (client / "train.txt").write_text(lines)
    partial.replace(folder)
    return folder


def read_digits() -> dict[int, Array]:
    """Digits of each class. Values are (n, 8, 8) float64 from 0, paper, to 1, ink."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    found = load_digits()
    return {index: found.images[found.target == index] / 16 for index in range(len(NAMES))}


def draw(digits: Mapping[int, Array], kind: int, random: np.random.Generator) -> Picture:
    """One to five digits on a background of this kind; those that would overlap are left out."""
    pixels = background(kind, random)
    boxes: list[tuple[int, float, float, int, int]] = []
    for _ in range(int(random.integers(1, 6))):
        index = int(random.integers(len(NAMES)))
        ink = turned(random.choice(digits[index]), random)
        height, width = ink.shape
        top, left = (int(random.integers(0, SIZE - side)) for side in ink.shape)
        x, y = left + width / 2, top + height / 2
        if any(
            abs(x - box[1]) < (width + box[3]) / 2.4 and abs(y - box[2]) < (height + box[4]) / 2.4
            for box in boxes
        ):
            continue
        here = pixels[top : top + height, left : left + width]
        color, paper = random.random(3), here.mean(axis=(0, 1))
        if np.abs(color - paper).max() < 0.3:  # it would be invisible
            color = (1 - paper).round()
        cover = (ink * 1.2).clip(0, 1)[..., None]
        here[:] = here * (1 - cover) + cover * color
        boxes.append((index, x, y, width, height))
    noisy = pixels + random.normal(0, 0.04, pixels.shape)
    return Picture(noisy.clip(0, 1), kind, tuple(boxes))


def background(kind: int, random: np.random.Generator) -> Array:
    """A texture: smooth, grey tiles, green, pale and grainy, or dark tiles. (SIZE, SIZE, 3)."""
    side = int(random.integers(3, 24))
    colors = (random.random((side, side, 3)) * 255).astype(np.uint8)
    picture = Image.fromarray(colors).resize((SIZE, SIZE), TEXTURES[kind])
    pixels = np.asarray(picture) / 255
    if kind == 1:
        pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    elif kind == 2:
        pixels = 0.4 * pixels + 0.6 * np.array([0.2, 0.5, 0.3])
    elif kind == 3:
        pixels = 0.3 * pixels + random.normal(0, 0.12, pixels.shape) + 0.4
    elif kind == 4:
        pixels = 0.5 * pixels
    return pixels.clip(0, 1)


def turned(digit: Array, random: np.random.Generator) -> Array:
    """A digit of (8, 8) at a random size and angle, cut out: (height, width), 0 to 1."""
    side, angle = int(random.integers(18, 56)), float(random.uniform(-25, 25))
    picture = Image.fromarray((digit * 255).astype(np.uint8))
    picture = picture.resize((side, side), Resampling.BICUBIC)
    ink = np.asarray(picture.rotate(angle, expand=True)) / 255
    rows, columns = np.where(ink > INK)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def save(picture: Picture, folder: Path, split: str, name: str) -> None:
    """Write an image and its labels."""
    pixels = (picture.pixels * 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / split / f"{name}.png")
    rows = [
        f"{index} {x / SIZE:.5f} {y / SIZE:.5f} {width / SIZE:.5f} {height / SIZE:.5f}\n"
        for index, x, y, width, height in picture.boxes
    ]
    (folder / "labels" / split / f"{name}.txt").write_text("".join(rows))


def splits_of(pictures: Mapping[str, Picture]) -> dict[str, list[list[str]]]:
    """The train images of each client of each split. pictures: by name of the file."""
    names = list(pictures)
    ends = [round(part * len(names)) for part in (0, 0.7, 0.9, 1)]
    mixed = [names[i] for i in np.random.default_rng(SEED).permutation(len(names))]
    return {
        "iid3": [names[start::3] for start in range(3)],
        "unlike3": list(grouped(names, [pictures[name].main_class // 2 for name in names])),
        "domain5": list(grouped(names, [pictures[name].kind for name in names])),
        "unequal_70_20_10": [sorted(mixed[start:end]) for start, end in pairwise(ends)],
    }


def grouped(names: Sequence[str], numbers: Sequence[int]) -> Iterator[list[str]]:
    """Names that have the same number, by rising number."""
    for chosen in sorted(set(numbers)):
        yield [name for name, number in zip(names, numbers, strict=True) if number == chosen]


def write_data_yaml(folder: Path, train: str) -> None:
    """The data.yaml of all or of a client, whose folders are relative to it."""
    folder.mkdir(parents=True)
    up = "../" * (1 if folder.name == "all" else 3)
    data = {"train": train, "val": f"{up}images/val", "test": f"{up}images/test"}
    text = yaml.safe_dump({**data, "names": dict(enumerate(NAMES))}, sort_keys=False)
    (folder / "data.yaml").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
