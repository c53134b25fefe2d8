"""The branch that tells classes: of what width it is, and what becomes of its rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import data_of, make_checkpoint, names_of

from federated_yolo.common.arrays import Layout
from federated_yolo.yolo.checkpoint import load_base, weights_of
from federated_yolo.yolo.class_branch import (
    architecture_of,
    class_change,
    set_class_branch,
)
from federated_yolo.yolo.model import build_model, to_arrays


@pytest.mark.parametrize(
    ("names", "train", "expected"),
    [
        (["x", "B", "c"], {}, "2 classes before, 3 now; 1 of them are known by name, and keep"),
        (["x", "y", "z"], {}, "2 classes before, 3 now; none of them is known by name, so their"),
        (["x", "y"], {}, "2 classes before, 2 now; none of them is known by name, so each takes"),
        (["b", "a"], {}, "2 classes before, 2 now; 2 of them are known"),
        (["x"], {"cls_remap": False}, "2 classes before, 1 now"),
        (["a", "b"], {}, ""),
        (["x", "y"], {"pretrained": False}, ""),
    ],
)
def test_it_is_told_what_becomes_of_the_classes_of_the_base(
    names: list[str], train: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "base.pt", ["a", "b"])
    weights = weights_of(load_base(str(base)), train.get("pretrained", True))
    assert class_change(weights, train, names)[: len(expected) or None] == expected
    assert class_change(weights_of(load_base("yolov8n.yaml"), True), {}, names) == ""


def test_as_many_classes_of_other_names_take_the_rows_of_their_indices(tmp_path: Path) -> None:
    """Also names that only count, which Ultralytics does not compare."""
    for before, after in ((["a", "b"], ["x", "y"]), (["0", "1"], ["1", "0"])):
        base = make_checkpoint(tmp_path / "base.pt", before)
        loaded = load_base(str(base))
        model = to_arrays(build_model(str(base), "detect", data_of(after, "detect")))
        assert loaded.module is not None
        kept = to_arrays(loaded.module)
        row = next(name for name in kept if ".cv3.0.2.weight" in name)
        np.testing.assert_array_equal(model[row], kept[row])
        text = class_change(weights_of(loaded, True), {}, after)
        assert text.endswith("none of them is known by name, so each takes the row of its index")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.23.cv3.0.2.weight": (9, 80, 1, 1)}, "ends in 9 channels, expected 3 classes"),
        ({"model.23.cv3.1.0.0.conv.weight": (128, 7, 3, 3)}, "does not take 128 channels"),
        ({"model.23.cv3.3.2.weight": (3, 80, 1, 1)}, "of no feature map"),
        ({"model.23.cv3.0.9.weight": (3, 3, 1, 1)}, "expected 0, 1, "),
        ({"model.23.one2one_cv3.0.2.weight": (3, 80, 1, 1)}, "of another kind of head"),
        ({"model.23.cv3.0.0.0.conv.weight": (0, 1, 3, 3)}, "does not take 64 channels"),
    ],
)
def test_a_class_branch_that_fits_no_model_is_refused(
    change: dict[str, tuple[int, ...]], expected: str, tmp_path: Path
) -> None:
    """As a client is told it by a server, or an exporter by an archive."""
    base = make_checkpoint(tmp_path / "base.pt", names_of(80), "yolo11n.yaml")
    data = data_of(["a", "b", "c"], "detect")
    found = architecture_of(build_model(str(base), "detect", data), load_base(str(base)).module)
    model = build_model("yolo11n.yaml", "detect", data)
    before = Layout.of(to_arrays(model))
    with pytest.raises(ValueError, match=expected):
        set_class_branch(model, {**found.class_branch, **change})
    assert Layout.of(to_arrays(model)) == before
    assert json.loads(json.dumps(found.yaml)) == found.yaml
