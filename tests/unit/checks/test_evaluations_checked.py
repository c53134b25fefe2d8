"""Test splits and settings of the evaluation, before round 1."""

from pathlib import Path
from typing import Any

import pytest
from evaluated import add_test_split
from recipes import make_dataset

from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config


def config_of(data: list[Path], **others: Any) -> Config:
    datasets = [{"name": f"c{i}", "data": str(path)} for i, path in enumerate(data)]
    return Config.model_validate({"base_model": "yolov8n.yaml", "datasets": datasets, **others})


def test_a_test_split_without_labels_is_left_alone(tmp_path: Path) -> None:
    data = [
        add_test_split(make_dataset(tmp_path / "one"), 2, labelled=False),
        make_dataset(tmp_path / "two"),
    ]
    data[1].write_text(data[1].read_text() + "test: images/not_there\n")  # as in a COCO data.yaml
    with checked(config_of(data, save_dir=str(tmp_path))) as ready:
        assert [ready.summaries[name].num_test for name in ("c0", "c1")] == [0, 0]
        # A user who has misplaced the labels is told.
        assert [ready.summaries[name].test_is_unlabelled for name in ("c0", "c1")] == [True, False]


def test_a_damaged_test_image_is_reported_before_round_1(tmp_path: Path) -> None:
    data = add_test_split(make_dataset(tmp_path / "one"), 2)
    (tmp_path / "one" / "images" / "test" / "0.jpg").write_bytes(b"\xff\xd8 no image")
    with (
        pytest.raises(InputError, match=r"'c0' .*: test: .*0.jpg: .*repair or remove"),
        checked(config_of([data], save_dir=str(tmp_path))),
    ):
        pass


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        (
            {"evaluate": {"cross_client": True, "every": 0}},
            "evaluate.cross_client: has no effect with evaluate.every 0",
        ),
        (
            {"shared": {"batchnorm": "local"}},
            r"datasets\[0\] 'c0': show_images: pictures show a global model",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    others: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "one")
    datasets = [{"name": "c0", "data": str(data), "show_images": 2 * ("shared" in others)}]
    settings = {"base_model": "yolov8n.yaml", "datasets": datasets, "save_dir": str(tmp_path)}
    config = Config.model_validate({**settings, **others})
    with pytest.raises(InputError, match=problem), checked(config):
        pass
