"""COCO's annotations as objects: boxes, polygons and masks, keypoints, and which are crowds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, FiniteFloat

from federated_yolo.data.exports.content import LeftOut, Object, Point
from federated_yolo.data.exports.json_files import is_number
from federated_yolo.data.exports.masks import rle_outline
from federated_yolo.data.exports.shapes import rotated_corners
from federated_yolo.data.exports.write import FLAT

MIN_NUMBERS = 6  # of a polygon: x and y of three corners
CROWD = "a crowd (iscrowd: 1)"
CROWD_SHARE = 0.25  # of all objects; more are no crowds. COCO's own files have 1 %
SUPERVISION = "common-objects"  # supervision's supercategory of all classes
NEAR = 1.5  # pixels by which a box may differ from its polygon, or reach beyond the image
AREA_NEAR = 0.01  # share of an area by which tools round it
MASK_NEAR = 2.0  # pixels by which a box and its mask may differ

Id = int | str
Text = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
Pixels = Annotated[FiniteFloat, Field(gt=0)]
Edges = tuple[float, float, float, float]  # left, top, right, bottom
Outline = tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Image:
    """An image of a COCO file. LVIS has no file_name, but an address that ends in it."""

    id: Id
    file_name: Annotated[Text, Field(validation_alias=AliasChoices("file_name", "coco_url"))]
    width: Pixels
    height: Pixels

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.width, self.height


@dataclass(frozen=True)
class Category:
    """A class of a COCO file. keypoints: Their names, if it is a list of them."""

    id: Id
    name: Text
    supercategory: Any = None
    keypoints: Any = None


@dataclass(frozen=True)
class Annotation:
    """An object of a COCO file.

    Attributes:
        image_id: Of its image.
        category_id: Of its class.
        bbox: Left, top, width, height in pixels; some tools leave it out beside a polygon.
        iscrowd: Whether it is marked as a crowd.
        segmentation: Polygons as lists of x and y, or a mask as run lengths, or nothing.
        keypoints: x, y, visibility of each.
        area: In square pixels, of the outline if there is one.
        attributes: What CVAT and Datumaro add; COCO itself has no such key.
    """

    image_id: Id
    category_id: Id
    bbox: Annotated[
        Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)] | None,
        BeforeValidator(lambda value: None if value == [] else value),
    ] = None
    iscrowd: bool | None = False
    segmentation: Any = None
    keypoints: list[FiniteFloat] | None = None
    area: Any = None
    attributes: Any = None


@dataclass(frozen=True)
class Coco:
    """A COCO file of annotations; what else it has is not read."""

    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """An object and where it is in its file.

    Attributes:
        index: Of its annotation.
        image: Its image.
        box: The `bbox` as left, top, width, height; None where there is none.
        object: What it is read as.
        area: The `area`, if it is a number.
    """

    index: int
    image: Image
    box: Edges | None
    object: Object
    area: float | None = None


def marks_are_masks(contents: Iterable[Coco]) -> str | None:
    """Why objects with `iscrowd: 1` are single objects all the same; None where they are crowds.

    COCO marks with it what stands for a group of objects, about one annotation in a hundred. CVAT
    and Datumaro mark each object whose outline is a mask (a brush was used) and not a polygon, and
    supervision those with holes or several parts; their files hold nothing else that tells. They
    are known by what COCO does not have, for all files of an export together:

    - CVAT gives every annotation a key `attributes`, with at least `occluded` in it. (Datumaro
      leaves it out where there are none, also in a copy of COCO, whose crowds stay crowds.)
    - supervision calls each supercategory "common-objects".
    - More than a quarter of all annotations are marked.
    """
    contents = list(contents)
    annotations = [a for content in contents for a in content.annotations]
    num_marked = sum(bool(a.iscrowd) for a in annotations)
    if not num_marked:
        return None
    if any(isinstance(a.attributes, dict) for a in annotations):
        return "CVAT marks every mask so"
    parents = {c.supercategory for content in contents for c in content.categories}
    if parents == {SUPERVISION}:
        return "supervision marks masks with holes or several parts so"
    if num_marked > CROWD_SHARE * len(annotations):
        return "crowds are rare, and tools mark masks so"
    return None


def objects_of(
    content: Coco, names: Mapping[Id, str], with_marked: bool, left_out: LeftOut
) -> tuple[list[Found], list[str]]:
    """The objects of a file whose ids are right, and what is wrong with its annotations.

    Args:
        content: The file.
        names: Class names by the ids of categories.
        with_marked: Whether those with `iscrowd: 1` are objects.
        left_out: Counts those that are left out.
    """
    images = {image.id: image for image in content.images}
    found: list[Found] = []
    problems: list[str] = []
    for index, annotation in enumerate(content.annotations):
        name = names[annotation.category_id]
        if annotation.iscrowd and not with_marked:
            left_out.add(CROWD, name)
            continue
        image = images[annotation.image_id]
        try:
            o = _object(annotation, image, name)
        except ValueError as error:
            problems.append(f"annotations.{index}.{error}")
            continue
        if o is None:
            left_out.add(FLAT, name)
            continue
        left, top, width, height = annotation.bbox or (0, 0, 0, 0)
        box = (left, top, width, height) if width > 0 and height > 0 else None
        area = annotation.area if is_number(annotation.area) else None
        found.append(Found(index, image, box, o, area))
    return found, problems


def _object(annotation: Annotation, image: Image, name: str) -> Object | None:
    """An annotation as an object; None where its box has no area.

    Raises ValueError, whose text begins with the key that is wrong.
    """
    outline = _outline(annotation.segmentation, image)
    bounds = Object(name, outline=outline).bounds
    if annotation.bbox is None and bounds is None:
        raise ValueError(
            "bbox: found None; expected a valid array of left, top, width and height in pixels, or "
            "a polygon; correct or remove the annotation"
        )
    box = bounds
    if annotation.bbox is not None and min(annotation.bbox[2:]) > 0:
        left, top, width, height = annotation.bbox
        box = (left, top, left + width, top + height)
        if bounds and isinstance(annotation.segmentation, dict):
            box = _whole_box(box, bounds)
            outline = _fitted(outline, bounds, box)
    assert box is None or len(box) == 4
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        return None
    degrees = _rotation(annotation)
    if degrees and not outline:
        return Object(name, corners=rotated_corners(box, degrees))
    numbers = annotation.keypoints or []
    points = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=False))
    return Object(name, box, outline, keypoints=points)


def _rotation(annotation: Annotation) -> float:
    """Degrees by which CVAT has turned a box, whose bbox is that of the unturned one."""
    attributes = annotation.attributes if isinstance(annotation.attributes, dict) else {}
    degrees = attributes.get("rotation", 0.0)
    return degrees % 360 if is_number(degrees) else 0.0


def _whole_box(box: Edges, bounds: Edges) -> Edges:
    """The box of a mask; Datumaro's, and so CVAT's, ends where its last pixel begins."""
    left, top, right, bottom = bounds
    short = (left, top, right - 1, bottom - 1)
    return bounds if all(abs(a - b) < 0.01 for a, b in zip(box, short, strict=True)) else box


def _fitted(outline: Outline, bounds: Edges, box: Edges) -> Outline:
    """The outline of a mask moved and stretched into its box, where they differ by a pixel or two.

    A box may be of fractions of pixels, of which a mask knows nothing; and tools differ in whether
    pixels that an outline only touches belong to the mask.
    """
    if bounds == box or not _near(bounds, box, MASK_NEAR):
        return outline
    left, top, right, bottom = bounds
    x, y = (box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top)
    return tuple(
        tuple((box[0] + (px - left) * x, box[1] + (py - top) * y) for px, py in part)
        for part in outline
    )


def _outline(segmentation: Any, image: Image) -> Outline:
    """Polygons of an annotation; none where it has nothing that is a polygon or a mask.

    A polygon that cannot be read makes the others useless too: a part would be missing.
    """
    if isinstance(segmentation, dict):
        try:
            return rle_outline(segmentation, image.size)
        except ValueError as error:
            raise ValueError(f"segmentation: {error}") from error
    if not isinstance(segmentation, list):
        return ()
    parts = [segmentation] if segmentation and is_number(segmentation[0]) else segmentation
    if not all(isinstance(p, list) and len(p) % 2 == 0 and all(map(is_number, p)) for p in parts):
        return ()
    return tuple(
        tuple((float(x), float(y)) for x, y in zip(part[::2], part[1::2], strict=True))
        for part in parts
        if len(part) >= MIN_NUMBERS
    )


def box_problems(found: Sequence[Found]) -> Iterator[str]:
    """Say where boxes are not left, top, width and height in pixels, which nothing else shows."""
    boxes = [box for f in found if (box := f.box or f.object.box)]
    if not boxes:
        return
    example = f"annotations.{found[0].index}: found the box {_text(boxes[0])}"
    if all(0 <= n <= 1 for box in boxes for n in box) and any(min(f.image.size) > 1 for f in found):
        yield (
            f"{example}, and all {len(boxes)} boxes are within 0 to 1, as fractions of the image; "
            "expected pixels; multiply left and width by the image's width, and top and height by "
            "its height, or export again in pixels"
        )
        return
    boxed = [f for f in found if f.box]
    if boxed and _are_corners(boxed):
        yield (
            f"{example}, and all {len(boxed)} boxes are right only as left, top, right, bottom; "
            "expected left, top, width, height; subtract left from the third number and top from "
            "the fourth, or export again"
        )
        return
    for f in boxed:
        bounds = Object("", outline=f.object.outline).bounds
        if bounds and f.object.box and not _touch(bounds, f.object.box):
            yield (
                f"annotations.{f.index}: its bbox {_text(f.box or ())} and its segmentation, from "
                f"{_text(bounds[:2])} to {_text(bounds[2:])}, lie apart; correct or remove one"
            )


def _are_corners(boxed: Sequence[Found]) -> bool:
    """Whether boxes can only be corners: some reach beyond the image as width and height alone, or
    none is around its polygon, or of its area; and none has a width or height below left or top."""
    beyond = around = as_corners = 0
    for f in boxed:
        assert f.box is not None
        x, y, a, b = f.box
        width, height = f.image.size
        if a <= x or b <= y or min(x, y) < -NEAR:
            return False
        outside = a > width + NEAR or b > height + NEAR
        beyond += not outside and (x + a > width + NEAR or y + b > height + NEAR)
        if (bounds := Object("", outline=f.object.outline).bounds) is not None:
            around += _near((x, y, x + a, y + b), bounds)
            as_corners += _near((x, y, a, b), bounds)
        elif f.area and max(x, y) > 0:
            around += _is_near_area(a * b, f.area)
            as_corners += _is_near_area((a - x) * (b - y), f.area)
    return not around and (beyond > 0 or as_corners > 0)


def _is_near_area(area: float, other: float) -> bool:
    return abs(area - other) <= AREA_NEAR * other


def _near(box: Edges, other: Edges, within: float = NEAR) -> bool:
    return all(abs(a - b) <= within for a, b in zip(box, other, strict=True))


def _touch(box: Edges, other: Edges) -> bool:
    return all(box[i] <= other[i + 2] + NEAR and other[i] <= box[i + 2] + NEAR for i in (0, 1))


def _text(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{n:g}' for n in numbers)}]"


def keypoint_form(
    content: Mapping[Path, Coco], found: Mapping[Path, Sequence[Found]], names: Sequence[str]
) -> tuple[dict[str, Any], dict[Path, list[str]]]:
    """What the data.yaml says of keypoints, and what is wrong with them.

    Args:
        content: The files.
        found: Their objects.
        names: Class names by index.

    Returns:
        The number of keypoints, and their names where there are as many; empty where not all
        objects have keypoints. And the problems of each file.
    """
    objects = [f.object for of_file in found.values() for f in of_file]
    if not objects or not all(o.keypoints for o in objects):
        return {}, {}
    num = len(objects[0].keypoints)
    problems = {path: list(_keypoint_problems(c, found[path], num)) for path, c in content.items()}
    listed: dict[int, list[str]] = {}
    for path, of_file in content.items():
        for category in (c for c in of_file.categories if c.name in names):
            points = category.keypoints
            if not isinstance(points, list) or len(points) != num:
                continue
            if not all(isinstance(point, str) and point.strip() for point in points):
                continue
            if listed.setdefault(names.index(category.name), points) != points:
                problems[path].append(
                    f"categories: '{category.name}' lists other keypoints than in the file before; "
                    "a data set has one list of keypoints for all splits"
                )
    form = {
        "kpt_shape": [num, 3],
        **({"kpt_names": dict(sorted(listed.items()))} if listed else {}),
    }
    return form, problems


def _keypoint_problems(content: Coco, found: Sequence[Found], num_points: int) -> Iterator[str]:
    points = [(x, y) for f in found for x, y, v in f.object.keypoints if v]
    if points and max(map(max, points)) <= 1 and min(map(min, points)) >= 0:
        yield (
            f"annotations.{found[0].index}.keypoints: all keypoints are within 0 to 1, as "
            "fractions of the image; expected pixels; export again in pixels"
        )
    for f in found:
        num = len(content.annotations[f.index].keypoints or ())
        if num != 3 * num_points:
            yield (
                f"annotations.{f.index}.keypoints: found {num} numbers, expected x, y and "
                f"visibility of {num_points} keypoints, as in the first object; correct it, or "
                "make a data set of each kind of object"
            )
