"""Split one data set into several clients, for experiments without real ones.

    federated-yolo partition SOURCE --clients 5 --scheme dirichlet -o DIR
        [--alpha 0.3] [--group-by folder|REGEX] [--val split|shared] [--copy] [--seed 0]
        [--val-fraction 0.2] [--rescale]

SOURCE is a data.yaml (detect, segment, pose, obb), a folder of classification data
(train/CLASS/1.jpg), or the export of an annotation tool (docs/formats.md), which `--val-fraction`
gives a val split where it has none, and `--rescale` the scale of its images where all of them were
resized after they were annotated. The source is only read. DIR gets

    client_0/data.yaml ...   usable under `datasets:` of a config; for classification, folders
    federated.yaml           a config with all clients, ready to start
    partitions.json          scheme, seed, and each client's images and objects of each class
    partitions.png           the same as a picture

Each train image goes to exactly one client, by one of these schemes (partitioning/schemes.py):

    iid         equal numbers of images, at random
    dirichlet   equal numbers, with each client's own mix of classes; smaller alpha: more different
    quantity    the same mix, but very different numbers; smaller alpha: more different
    class       each class belongs to one client, or to as few as possible
    group       all images of a folder, camera, ... stay together: images whose paths give the same
                first group of REGEX (or match, if it has no group); `folder` uses their folder

An image counts under its class that is on the fewest images. The val split is divided in the same
way, so that each client is scored on data like its own, while the server (`evaluate.data`) has all
of it; with `--val shared` every client has all of it. Clients get lists of images, which stay where
they are (classification: links); `--copy` makes folders that can be moved to other machines.
Near-duplicates at different clients, and in train and val, are counted.

Exit codes: 0 done, 1 failed while writing, 2 wrong input (nothing was written), 130 interrupted.
"""

import argparse
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from federated_yolo.common.command_line import called_as, failed, parser_of
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.text import listed
from federated_yolo.data.exports.convert import Options, make
from federated_yolo.data.exports.made import Made, naming_originals
from federated_yolo.partitioning.divide import (
    ALPHA_RANGE,
    DEFAULT_ALPHA,
    MAX_CLASSES,
    Partition,
    class_counts,
    count_duplicates,
    divide,
)
from federated_yolo.partitioning.picture import draw_partitions
from federated_yolo.partitioning.schemes import SCHEMES, SCHEMES_WITH_ALPHA
from federated_yolo.partitioning.source import Source, read_source
from federated_yolo.partitioning.write import refuse_inside, write, write_config


def summary(source: Source, partition: Partition, duplicates: dict[str, int]) -> dict[str, Any]:
    """Return the entries of partitions.json about the task, near-duplicates and clients."""
    counts = {split: class_counts(source, partition, split) for split in source.splits}
    clients: dict[str, Any] = {}
    for number, client in enumerate(partition.clients):
        clients[client] = entry = {}
        for split in source.splits:
            mine = partition.indices(source, split, number)
            entry[f"{split}_images"] = len(mine)
            entry[f"{split}_classes"] = dict(
                zip(source.names, counts[split][number].tolist(), strict=True)
            )
            if split in partition.groups:
                names = partition.groups[split]
                entry[f"{split}_groups"] = dict(sorted(Counter(names[i] for i in mine).items()))
    return {"task": source.task, "near_duplicates": duplicates, "clients": clients}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError with all problems that need no look at the data."""
    parser = parser_of("partition", __doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data.yaml or folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--clients", type=int, default=5, metavar="N")
    parser.add_argument("--scheme", default="iid", help=f"{', '.join(SCHEMES)}; default: iid")
    parser.add_argument("--alpha", type=float, help=f"default: {DEFAULT_ALPHA}")
    parser.add_argument("--group-by", metavar="folder|REGEX", help="default: folder")
    parser.add_argument("--val", default="split", help="split (default) or shared")
    parser.add_argument("--val-fraction", type=float, metavar="F", help="of data without val")
    parser.add_argument("--rescale", action="store_true", help="images were resized since")
    parser.add_argument("--copy", action="store_true", help="copy images and labels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    problems = list(_option_problems(options))
    if problems:
        raise InputError(problems)
    return options


def _option_problems(options: argparse.Namespace) -> Iterator[str]:
    scheme = options.scheme
    if scheme not in SCHEMES:
        yield (
            f"--scheme: found '{scheme}', expected one of {', '.join(SCHEMES)}"
            f"{nearest(scheme, SCHEMES)}"
        )
    if options.clients < 1:
        yield f"--clients: found {options.clients}, expected at least 1"
    if options.seed < 0:
        yield f"--seed: found {options.seed}, expected a whole number of at least 0"
    if options.val not in ("split", "shared"):
        yield f"--val: found '{options.val}', expected split or shared"
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        yield (
            f"--val-fraction: found {options.val_fraction:g}, expected a number above 0 and below "
            "1, such as 0.2"
        )
    if options.alpha is not None:
        if scheme in SCHEMES and scheme not in SCHEMES_WITH_ALPHA:
            yield (
                f"--alpha: has no effect with --scheme {scheme}; use "
                f"{' or '.join(SCHEMES_WITH_ALPHA)}, or leave it out"
            )
        low, high = ALPHA_RANGE
        if not (math.isfinite(options.alpha) and low <= options.alpha <= high):
            yield (
                f"--alpha: found {options.alpha:g}, expected a number from {low:g} (clients "
                f"unlike) to {high:g} (alike)"
            )
    if options.group_by is not None:
        if scheme in SCHEMES and scheme != "group":
            yield f"--group-by: has no effect with --scheme {scheme}; use group, or leave it out"
        try:
            re.compile(options.group_by)
        except re.error as error:
            yield (
                f"--group-by: '{options.group_by}' is no regular expression: {error}; expected "
                "'folder', or e.g. 'cam(\\d+)_'"
            )
    output = options.output
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        yield (
            f"-o {output}: already exists and will not be overwritten; choose a new or empty folder"
        )
    elif output.absolute().parent.exists() and not output.absolute().parent.is_dir():
        yield f"-o {output}: {output.absolute().parent} is not a folder; choose another place"
    if not options.source.exists():
        yield f"{options.source}: no such file or folder; expected a data.yaml or a folder of data"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        run(parse(arguments))
    except InputError as error:
        return failed(error.problems, 2)
    except OSError as error:  # e.g. a full disk
        return failed([str(error)], 1)
    except KeyboardInterrupt:
        return failed(["interrupted"], 130)
    return 0


def run(options: argparse.Namespace) -> None:
    """Read -> divide -> compare -> write -> print the result. Raises InputError.

    If it cannot be finished, everything new in the output folder is removed.
    """
    output: Path = options.output
    was_there = output.exists()
    try:
        with tempfile.TemporaryDirectory(prefix="federated-yolo-partition-") as scratch:
            _run(options, output, Path(scratch))
    except BaseException:
        for path in output.glob("*") if was_there else [output]:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise


def _run(options: argparse.Namespace, output: Path, scratch: Path) -> None:
    conversion = Options(None, options.val_fraction, options.seed, options.rescale)
    prepared = make(options.source, output / "source", conversion, where="")
    made = prepared.made
    with naming_originals(prepared.path):
        source = read_source(prepared.path, scratch, made.task or None if made else None)
    refuse_inside(source, output)
    if made and made.why:
        print(f"Labels of {source.task}: {made.why}")
    elif source.why:
        print(
            f"Labels of {source.task}: {source.why}; for another task change base_model in "
            "federated.yaml"
        )
    if made:
        print(f"Made of {made.format}: {_made_text(made)}")
    partition = divide(source, options)
    num_images = sum(len(split.images) for split in source.splits.values())
    print(f"Comparing {num_images} images ...", flush=True)
    duplicates, warnings = count_duplicates(source, partition)
    described = f"{options.source} by {describe(options)}"
    write(source, partition, output, copy=options.copy)
    result = {"partition": described, **summary(source, partition, duplicates)}
    if made:
        result["left_out"] = made.left_out
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (output / "partitions.json").write_text(text, encoding="utf-8")
    counts = class_counts(source, partition, "train")
    train_images = {name: entry["train_images"] for name, entry in result["clients"].items()}
    unit = "images" if source.task == "classify" else "objects"
    draw_partitions(output / "partitions.png", train_images, counts, source.names, unit)
    show(source, result, counts)
    for warning in [*(made.notes if made else ()), *warnings]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{output / 'partitions.png'}  {described}")
    print("Next:")
    config = write_config(source, partition, output, described)
    path = shlex.quote(str(config))
    print(f"  {called_as('check')} {path}")
    print(f"  {called_as()} {path}")


def _made_text(made: Made) -> str:
    """Images of each split, objects of each class, and what was left out and why."""
    lost = [f"left out: {listed(counts)}: {reason}" for reason, counts in made.left_out.items()]
    return "; ".join(
        [f"{listed(made.images)} images", f"objects: {listed(made.num_objects)}", *lost]
    )


def describe(options: argparse.Namespace) -> str:
    """Return the scheme and the other options that decide the result, as text."""
    alpha = DEFAULT_ALPHA if options.alpha is None else options.alpha
    extra = f" (alpha {alpha:g})" if options.scheme in SCHEMES_WITH_ALPHA else ""
    extra = f" ({options.group_by or 'folder'})" if options.scheme == "group" else extra
    return f"scheme {options.scheme}{extra}, val {options.val}, seed {options.seed}"


def show(source: Source, result: dict[str, Any], counts: np.ndarray) -> None:
    """Print a table: a row for each client with its images, and its train objects by class."""
    names = source.names if len(source.names) <= MAX_CLASSES else ()
    widths = [max(len(name), 6) for name in names]
    first = max(len(client) for client in result["clients"])
    heads = [name.rjust(width) for name, width in zip(names, widths, strict=True)]
    print("  ".join([" " * first, " train", "   val", *heads]))
    for row, (client, entry) in zip(counts.tolist(), result["clients"].items(), strict=True):
        cells = [f"{entry['train_images']:6}", f"{entry['val_images']:6}"]
        cells += [f"{row[i]:{width}}" for i, width in enumerate(widths)]
        print("  ".join([client.ljust(first), *cells]))
