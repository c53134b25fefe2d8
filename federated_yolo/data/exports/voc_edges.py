"""Whether edges of boxes in Pascal VOC's files are counted from 0 or from 1, which no file says.

- The devkit's own files count pixels from 1, and the last one is of the object: the left and top
  edge are one less than written, right and bottom as written. They are told by <database>The
  VOC2007 Database</database> or <folder>VOC2007</folder> (fractions occur in them, too). What
  supervision writes is so, too: it has <folder>VOC</folder>, <database>roboflow.ai</database> and
  no <path>. So are files without a <source> that lists in ImageSets/Main name, or with a left or
  top edge of 1: where pixels are counted from 0, boxes at the edge have a 0.
- Roboflow's own exports have edges one pixel beyond the image (<xmax>156</xmax> of a <width> of
  155, in files that it has published); where one has, all its edges are one less than written.
  Where none has, they are taken as written, and a note says so.
- All others (LabelImg, CVAT, Datumaro, Label Studio, FiftyOne, VoTT) write edges as they are. So
  does whatever has a 0 or less, even where it has copied the devkit's <source>.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from federated_yolo.data.exports.shapes import Box

DEVKIT = re.compile(r"VOC\s?\d{4}", re.IGNORECASE)  # in <database>, or the whole <folder>
SUPERVISION = "VOC"  # its <folder>

Source = tuple[str, str, bool, bool]  # <database>, telling <folder>, has <source>, has <path>
Placed = tuple[tuple[float, float] | None, Box]  # size of the image, and a box as written


@dataclass(frozen=True)
class Edges:
    """What is taken off the left and top (`low`) and the right and bottom edges; why."""

    low: int = 0
    high: int = 0
    why: str = ""


def source_of(database: str, folder: str, has_source: bool, has_path: bool) -> Source:
    """By what a file is told; a folder that tells nothing is left out."""
    tells = folder == SUPERVISION or DEVKIT.fullmatch(folder)
    return database, folder if tells else "", has_source, has_path


def edges_of(source: Source, boxes: Sequence[Placed], has_lists: bool) -> Edges:
    """How the edges of all boxes of a source are written.

    Args:
        source: Of the files that they are in.
        boxes: All of them.
        has_lists: Whether lists in ImageSets name the images.
    """
    database, folder, has_source, has_path = source
    lowest = min((min(box[:2]) for _, box in boxes), default=0)
    if lowest <= 0:
        return Edges()
    is_roboflow = database.startswith("roboflow")
    is_devkit = bool(DEVKIT.search(database)) or (not database and bool(DEVKIT.fullmatch(folder)))
    if is_roboflow and any(
        size and (box[2] == size[0] + 1 or box[3] == size[1] + 1) for size, box in boxes
    ):
        return Edges(1, 1, "all edges are one pixel less than written, since some are outside")
    if is_devkit:
        return Edges(1, 0, "pixels are counted from 1, as in VOC's own files")
    if is_roboflow and folder == SUPERVISION and not has_path:
        return Edges(1, 0, "pixels are counted from 1, as supervision writes them")
    if is_roboflow:
        return Edges(
            why="Roboflow's files do not say whether pixels are counted from 0 or 1; edges are "
            "taken as written, and may be one pixel off; its COCO export leaves no doubt"
        )
    if has_source:
        return Edges()
    if has_lists or lowest == 1:
        return Edges(1, 0, "no <source> says who wrote it; pixels are counted from 1, as VOC does")
    return Edges(why="no <source> says who wrote it; pixels are counted from 0, as most tools do")
