"""Sizes of images, compared with those that an export gives: boxes in pixels depend on them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image
from ultralytics.data.utils import exif_size

from federated_yolo.data.exports.content import Content, Picture

ROUNDING = 1.0  # pixels by which a resized image may differ from an exact factor


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels as Ultralytics reads the image; None for no readable image."""
    try:
        with Image.open(path) as image:
            return exif_size(image)
    # Ultralytics tries what Pillow cannot read as HEIF, whose package may be missing.
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError):
        return None


def size_problems(content: Content, *, rescale: bool = False) -> Iterator[str]:
    """Say where an image has another size than the export gives for it.

    All boxes of such an image would be scaled or turned, without any error.

    rescale: Images that are all larger or smaller by the same factor are no problem.
    """
    wrong = [
        (picture, size, actual)
        for picture in content.pictures
        if (size := picture.size) and (actual := image_size(picture.path)) and size != actual
    ]
    if not wrong:
        return
    num = sum(picture.size is not None for picture in content.pictures)
    picture, size, actual = wrong[0]
    first = (
        f"{content.file}: {picture.entry}: {picture.path.name} is {_text(actual)} pixels, and the "
        f"export says {_text(size)}"
    )
    if all(s == a[::-1] for _, s, a in wrong) and all(_is_turned(p) for p, _, _ in wrong):
        yield (
            f"{first} (and {len(wrong) - 1} more): a camera's EXIF tag turns the image, and it was "
            "annotated unturned; write the images without the tag (e.g. mogrify -auto-orient, or "
            "export with images) and annotate or export again"
        )
        return
    factor = _common_factor([(s, a) for _, s, a in wrong]) if len(wrong) == num else None
    if factor is not None and factor < 1 and all(_fits(p, actual) for p, _, actual in wrong):
        yield (
            f"{first} (and {len(wrong) - 1} more), but all objects lie within the images as they "
            "are: most likely only the sizes in the export are wrong, and no coordinates; correct "
            "the sizes, or export again"
        )
        return
    if factor is not None and rescale:
        return
    if factor is not None:
        yield (
            f"{first}: all {num} images are {factor:g} times as large as in the export; put back "
            f"the images that were annotated, or multiply all coordinates by {factor:g} with "
            "--rescale of federated-yolo partition"
        )
        return
    for picture, size, actual in wrong:
        yield (
            f"{content.file}: {picture.entry}: {picture.path.name} is {_text(actual)} pixels, and "
            f"the export says {_text(size)}, so that its objects would be misplaced; put back the "
            "image that was annotated, or export again"
        )


def _text(size: tuple[float, float]) -> str:
    return f"{size[0]:g} x {size[1]:g}"


def _fits(picture: Picture, size: tuple[int, int]) -> bool:
    """Whether all objects lie within an image of this size as they are."""
    bounds = [box for o in picture.objects if (box := o.bounds)]
    return all(
        right <= size[0] + ROUNDING and bottom <= size[1] + ROUNDING
        for _, _, right, bottom in bounds
    )


def _is_turned(picture: Picture) -> bool:
    """Whether an EXIF tag turns the image by a quarter."""
    with Image.open(picture.path) as image:
        return image.size != image_size(picture.path)


def _common_factor(pairs: list[tuple[tuple[float, float], tuple[int, int]]]) -> float | None:
    """Actual size by given size, if it is the same for all images and both sides."""
    (width, _), (actual_width, _) = pairs[0]
    factor = actual_width / width
    if all(
        abs(given * factor - actual) <= ROUNDING
        for size, actual_size in pairs
        for given, actual in zip(size, actual_size, strict=True)
    ):
        return factor
    return None


def rescaled(content: Content) -> Content:
    """The same with coordinates as of the images as they are; call it after `size_problems`."""
    return replace(
        content,
        splits={
            split: [_rescaled(picture) for picture in pictures]
            for split, pictures in content.splits.items()
        },
    )


def _rescaled(picture: Picture) -> Picture:
    actual = image_size(picture.path)
    if picture.size is None or actual is None or actual == picture.size:
        return picture
    x, y = actual[0] / picture.size[0], actual[1] / picture.size[1]
    objects = tuple(
        replace(
            o,
            box=o.box and (o.box[0] * x, o.box[1] * y, o.box[2] * x, o.box[3] * y),
            outline=tuple(tuple((px * x, py * y) for px, py in part) for part in o.outline),
            corners=tuple((px * x, py * y) for px, py in o.corners),
            keypoints=tuple((px * x, py * y, v) for px, py, v in o.keypoints),
        )
        for o in picture.objects
    )
    return replace(picture, objects=objects, size=actual)
