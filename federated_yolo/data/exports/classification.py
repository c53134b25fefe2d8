"""Classification: class folders that Ultralytics does not read as they are, and tables of labels.

    train/CLASS and test/CLASS     test becomes val, as Ultralytics takes it
    train/CLASS alone, CLASS       val_fraction makes a val split
    _classes.csv (Roboflow)        a column of 0 and 1 for each class
    a CSV of filename and label    also train.csv beside train/, as on Kaggle

Class folders with train and val are none of these: they stay the user's own.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import SPLIT_FOLDERS, is_image_name
from federated_yolo.data.exports.content import (
    SPLIT_WORDS,
    Content,
    Format,
    LeftOut,
    Object,
    Picture,
    first_problems,
    split_in,
)
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    head_of,
    limited,
    read_text,
    walk,
)
from federated_yolo.data.exports.write import Written
from federated_yolo.data.exports.yolo import find_yaml
from federated_yolo.data.exports.yolo_files import images_in, inside, signature

FOLDERS, ROBOFLOW, TABLE = "class folders", "Roboflow _classes.csv", "CSV of file names and labels"
CLASSES_CSV = "_classes.csv"
FILE_COLUMNS = (
    *("filename", "file_name", "file", "filepath", "file_path", "path", "image", "image_path"),
    *("image_name", "image_id", "img", "id", "id_code", "name"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "breed")
SPLIT_COLUMNS = ("split", "set", "subset", "data set", "dataset")
# Columns of tables of objects with a place.
PLACES = {
    *("xmin", "x_min", "xmax", "x_max", "x1", "x", "left", "bbox", "box", "segmentation"),
    *("x0", "xc", "x_c", "cx", "x_center", "xcenter", "center_x", "xtl", "bbox_x", "polygons"),
    *("region_shape_attributes", "encodedpixels", "rle", "polygon", "mask"),
}
# Folders that are none of a class, and files that tell of something else than classes.
NO_CLASSES = {"images", "labels", "annotations", "masks", "jpegimages", "imagesets", "img", "ann"}
ANNOTATIONS = {".xml", ".json", ".csv", ".yaml", ".yml", ".ndjson", ".names", ".tfrecord"}
UNLABELLED = "unlabelled in the export"
NO_CLASS = {"unlabeled", "unlabelled"}
SAMPLE = 20  # files of a folder, or rows of a table, that a signature looks at


def write_classes(content: Content, folder: Path) -> Written:
    """Make FOLDER/SPLIT/CLASS/LINK to the images; `folder` must not exist.

    Every class has a folder in each split, since Ultralytics counts classes by folders.

    Args:
        content: What a classification export holds.
        folder: The new folder.

    Raises:
        InputError: With all class names and images that no folder can have.
    """
    problems = [f"{content.file}: {problem}" for problem in _name_problems(content.names)]
    problems += [
        f"{content.file}: {p.entry}: '{p.path.name}' is no image that Ultralytics reads; convert it"
        for p in content.pictures
        if not is_image_name(p.path.name)
    ]
    if problems:
        raise InputError(first_problems(problems))
    for split, pictures in content.splits.items():
        for name in content.names:
            (folder / split / name).mkdir(parents=True)
        for picture in pictures:
            # Where it is below the root, so that two images of one name do not meet.
            place = inside(picture.path.absolute(), content.root.absolute()).lstrip("/")
            link = folder / split / picture.objects[0].name / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(picture.path.absolute())
    objects = {
        split: dict(Counter(o.name for picture in pictures for o in picture.objects))
        for split, pictures in content.splits.items()
    }
    return Written(objects, {})


def _name_problems(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if "/" in name or "\\" in name or name.startswith(".") or not name.strip():
            yield f"class '{name}' cannot be the name of a folder, as classes are; rename it"
    lower = Counter(name.casefold() for name in names)
    for name in names:
        if lower[name.casefold()] > 1:
            yield f"class '{name}' differs from another only in upper and lower case; rename one"


@signature
def is_class_folders(path: Path) -> bool:
    """Whether a folder has class folders, but not train and val as Ultralytics looks for them."""
    if not path.is_dir() or find_yaml(path) or (path / ".ndjson.yaml").exists():
        return False
    splits = _split_folders(path)
    if "train" in splits:
        return not _is_ordinary(path) and _are_classes(splits["train"], labels_json=True)
    return not splits and _are_classes(path)


def _is_ordinary(path: Path) -> bool:
    """Whether a folder has class folders in train and val, as Ultralytics looks for them."""
    has_val = any((path / name).is_dir() for name in SPLIT_FOLDERS["val"])
    train = path / "train"
    return has_val and train.is_dir() and _are_classes(train, labels_json=True)


def _split_folders(path: Path) -> dict[str, Path]:
    """Folders of the splits by whole names: train, Training, valid, ..."""
    found = {}
    for split, words in SPLIT_WORDS.items():
        named = [p for p in sorted(path.iterdir()) if p.is_dir() and p.name.lower() in words]
        if named:
            found[split] = named[0]
    return found


def _classes(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.iterdir())
        if p.is_dir() and not p.name.startswith((".", "__MACOSX"))
    ]


def _are_classes(folder: Path, *, labels_json: bool = False) -> bool:
    """Whether a folder has two or more class folders, each with images and nothing else.

    labels_json: CVAT writes a labels.json beside its class folders.
    """
    classes = _classes(folder)
    if len(classes) < 2 or any(p.name.lower() in NO_CLASSES for p in classes):
        return False
    loose = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if labels_json:
        loose = [p for p in loose if p.name != "labels.json"]
    if any(is_image_name(p.name) or p.suffix.lower() in ANNOTATIONS for p in loose):
        return False
    found = 0
    for each in classes:
        for file in islice(walk(each), SAMPLE):
            if file.suffix.lower() in (*ANNOTATIONS, ".txt"):
                return False
            found += is_image_name(file.name)
    return found > 0


def read_class_folders(path: Path) -> Content:
    """Read class folders. Raises InputError."""
    splits = _split_folders(path) or {"train": path}
    problems = []
    for split, words in SPLIT_WORDS.items():
        named = [p.name for p in sorted(path.iterdir()) if p.is_dir() and p.name.lower() in words]
        if len(named) > 1 and split in splits:
            problems.append(f"{path}: {', '.join(named)} are all for {split}; keep one of them")
    notes = []
    if "val" not in splits and "test" in splits:
        splits["val"] = splits.pop("test")
        notes.append(f"{splits['val'].name}/ is the val split, as Ultralytics takes it")
    pictures = [
        (split, Picture(image, (Object(each.name),), entry=inside(image, path)))
        for split, folder in splits.items()
        for each in _classes(folder)
        for image in images_in(each)
    ]
    loose = [p for f in splits.values() for p in walk(f, 0) if is_image_name(p.name)]
    if loose:
        problems.append(
            f"{loose[0]}: an image outside of the class folders (and {len(loose) - 1} more); move "
            "it into the folder of its class"
        )
    if problems:
        raise InputError(problems)
    names = {each.name for folder in splits.values() for each in _classes(folder)}
    return _content(FOLDERS, path, path, names, pictures, notes)


def _content(
    name: str,
    path: Path,
    root: Path,
    names: set[str],
    pictures: Sequence[tuple[str | None, Picture]],
    notes: Sequence[str],
    left_out: Mapping[str, Mapping[str, int]] | None = None,
) -> Content:
    content = Content(
        format=name,
        root=root,
        names=tuple(sorted(names)),  # as Ultralytics orders the folders
        splits=by_split(pictures),
        left_out=left_out or {},
        notes=tuple(notes),
        file=path,
        task="classify",
    )
    trained = {o.name for p in content.splits.get("train", ()) for o in p.objects}
    if lacking := sorted(names - trained):
        note = f"no train image is of the classes {', '.join(lacking)}"
        content = replace(content, notes=(*content.notes, note))
    return content


@signature
def is_classes_csv(path: Path) -> bool:
    """Whether this is, or a folder has, Roboflow's _classes.csv."""
    return bool(_roboflow_tables(path))


def _roboflow_tables(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name == CLASSES_CSV else []
    if not path.is_dir() or find_yaml(path) or _is_ordinary(path):
        return []
    return [p for p in walk(path, 2) if p.name == CLASSES_CSV]


def read_classes_csv(path: Path) -> Content:
    """Read Roboflow's tables of a column for each class. Raises InputError."""
    root = path if path.is_dir() else path.parent
    problems: dict[str, list[str]] = {"tables": [], "rows": [], "classes": []}
    left_out = LeftOut()
    names: set[str] = set()
    pictures: list[tuple[str | None, Picture]] = []
    for table in _roboflow_tables(path):
        columns, rows = _rows(table)
        classes = columns[1:]
        names |= {name for name in classes if name.lower() not in NO_CLASS}
        images = ImageFiles(table.parent)
        for number, row in rows:
            where = f"{table}: row {number}"
            try:
                image = images.find(row[columns[0]], [table.parent])
                marked = _marked(row, classes)
            except ValueError as error:
                problems["rows"].append(f"{where}: {error}")
                continue
            if len(marked) > 1:
                problems["classes"].append(
                    f"{where}: {image.name} is of {len(marked)} classes ({', '.join(marked)}), and "
                    "Ultralytics' classifiers tell one class an image; export a project of the "
                    "type single-label classification"
                )
            elif not marked or marked[0].lower() in NO_CLASS:
                left_out.add(UNLABELLED, "no class")
            else:
                entry = f"{inside(table, root)}: row {number}"
                split = split_in(table.parent.name)
                pictures.append((split, Picture(image, (Object(marked[0]),), entry=entry)))
    problems["twice"] = list(_twice(path, pictures))
    if found := limited(problems):
        raise InputError(found)
    return _content(ROBOFLOW, path, root, names, pictures, (), left_out.counts)


def _marked(row: Mapping[str, str], classes: Sequence[str]) -> list[str]:
    odd = next((row[name] for name in classes if row[name] not in ("0", "1")), None)
    if odd is not None:
        raise ValueError(f"found '{odd}', expected 0 or 1 for each class; correct it")
    return [name for name in classes if row[name] == "1"]


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a table, and its rows with their numbers in the file. Raises InputError."""
    try:
        listed = list(csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV: {error}; export it again") from error
    columns = [name.strip() for name in listed[0]] if listed else []
    problems = [
        f"{path}: column '{n}' is there twice" for n, c in Counter(columns).items() if c > 1
    ]
    rows = []
    for number, cells in enumerate(listed[1:], 2):
        if len(cells) == len(columns):
            values = (cell.strip() for cell in cells)
            rows.append((number, dict(zip(columns, values, strict=True))))
        elif any(cell.strip() for cell in cells):
            problems.append(
                f"{path}: row {number}: {len(cells)} cells, expected {len(columns)}; correct it"
            )
    if problems:
        raise InputError(first_problems(problems))
    return columns, rows


def _twice(path: Path, pictures: Sequence[tuple[str | None, Picture]]) -> Iterator[str]:
    """Say which images have two rows, and so perhaps two classes."""
    first: dict[Path, Picture] = {}
    for _, picture in pictures:
        other = first.setdefault(picture.path, picture)
        if other is not picture:
            names = f"{other.objects[0].name} and {picture.objects[0].name}"
            yield (
                f"{path}: {other.entry} and {picture.entry} are both of {picture.path.name} "
                f"({names}), and an image is of one class; remove one"
            )


@signature
def is_table(path: Path) -> bool:
    """Whether this is, or a folder has, a CSV of images and their classes."""
    return bool(_tables(path))


def _tables(path: Path) -> list[Path]:
    """The tables of file names and labels; a Kaggle folder also has others."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".csv" and _columns(path) else []
    if not path.is_dir() or find_yaml(path) or _is_ordinary(path):
        return []
    found = [p for p in walk(path, 2) if p.suffix.lower() == ".csv" and _columns(p)]
    return [p for p in found if "submission" not in p.name.lower()]


def _columns(path: Path) -> tuple[str, str, str | None] | None:
    """The columns of file name, label and, if there is one, split; None for another table."""
    line = next(csv.reader(io.StringIO(head_of(path)), skipinitialspace=True), [])
    columns = [name.strip() for name in line]
    lower = {name.lower(): name for name in columns}
    if PLACES & set(lower) or path.name == CLASSES_CSV:
        return None
    files = [lower[name] for name in FILE_COLUMNS if name in lower]
    labels = [lower[name] for name in LABEL_COLUMNS if name in lower]
    if files and not labels and len(columns) == 2:  # such as id_code and diagnosis
        labels = [name for name in columns if name != files[0]]
    if not files or not labels:
        return None
    split = next((lower[name] for name in SPLIT_COLUMNS if name in lower), None)
    return (files[0], labels[0], split) if _finds_images(path, columns.index(files[0])) else None


def _finds_images(path: Path, column: int) -> bool:
    """Whether one of the first rows is of an image near the table."""
    rows = islice(csv.reader(io.StringIO(head_of(path)), skipinitialspace=True), 1, SAMPLE)
    names = [row[column].strip() for row in rows if len(row) > column]
    images = ImageFiles(path.parent)
    return any(_find(images, name, path) for name in names if name)


def _find(images: ImageFiles, name: str, table: Path) -> list[Path]:
    """The images that a cell may name, with or without its ending; the nearest first."""
    folder = table.parent
    near = [folder / table.stem, folder, folder / "images", folder / f"{table.stem}_images"]
    if found := images.at(name, near):
        return [found]
    return (
        images.of_stem(name, near)
        or images.anywhere(name, folder)
        or images.stem_anywhere(name, folder)
    )


def read_table(path: Path) -> Content:
    """Read tables of file names and labels. Raises InputError."""
    root = path if path.is_dir() else path.parent
    problems: dict[str, list[str]] = {"rows": [], "labels": []}
    pictures: list[tuple[str | None, Picture]] = []
    for table in _tables(path):
        columns = _columns(table)
        assert columns is not None
        file, label, split = columns
        images = ImageFiles(table.parent)
        for number, row in _rows(table)[1]:
            where = f"{table}: row {number}"
            found, name = _find(images, row[file], table), row[label]
            if len(found) != 1:
                several = f"{len(found)} images are called so; name the folder, too"
                none = f"there is none below {table.parent}; put it there, or remove the row"
                text = several if found else none
                problems["rows"].append(f"{where}: {file} '{row[file]}': {text}")
            elif not name or any(sign in name for sign in "|;,"):
                problems["labels"].append(
                    f"{where}: {label} '{name}': expected one class, since Ultralytics' "
                    "classifiers tell one class an image; correct or remove the row"
                )
            else:
                told = (split and split_in(row[split])) or split_in(table.stem)
                told = told or _split_above(found[0], root)
                entry = f"{inside(table, root)}: row {number}"
                pictures.append((told, Picture(found[0], (Object(name),), entry=entry)))
    problems["twice"] = list(_twice(path, pictures))
    if lines := limited(problems):
        raise InputError(lines)
    names = {o.name for _, picture in pictures for o in picture.objects}
    return _content(TABLE, path, root, names, pictures, _unlisted(root, pictures))


def _split_above(image: Path, root: Path) -> str | None:
    parts = image.relative_to(root).parts[:-1]
    return next((split for part in parts if (split := split_in(part))), None)


def _unlisted(root: Path, pictures: Sequence[tuple[str | None, Picture]]) -> list[str]:
    listed = {picture.path for _, picture in pictures}
    num = sum(image not in listed for image in images_in(root))
    return [f"{num} images have no row and are left out"] if num else []


FORMATS = (
    Format(ROBOFLOW, is_classes_csv, read_classes_csv),
    Format(TABLE, is_table, read_table),
    Format(FOLDERS, is_class_folders, read_class_folders),
)
