"""A run from Python is as safe and as strict as the command's; docs/python.md is in test_docs."""

from pathlib import Path
from typing import Any

import pytest
from processes import python
from recipes import make_dataset

from federated_yolo import api
from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config

START = "base_model: yolov8n.yaml\ndatasets: [north/data.yaml]\n"


@pytest.mark.parametrize("trusted", [False, True])
def test_base_models_are_restricted_and_settings_private_as_of_the_config(
    trusted: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(f"{START}trust_checkpoint: {str(trusted).lower()}\n")
    done = python(
        "from federated_yolo import load_config; load_config('config.yaml')\n"
        "from ultralytics.utils import SAFE_LOAD, SETTINGS_FILE, ONLINE\n"
        "print(SAFE_LOAD, 'federated-yolo-' in str(SETTINGS_FILE), ONLINE)",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{not trusted} True False\n"


@pytest.mark.parametrize(
    "before",
    ["import ultralytics", "from federated_yolo import load_config; load_config('trusting.yaml')"],
)
def test_another_ultralytics_than_the_config_asks_for_is_refused(
    before: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(START)
    (tmp_path / "trusting.yaml").write_text(f"{START}trust_checkpoint: true\n")
    done = python(
        f"{before}\nfrom federated_yolo import load_config; load_config('config.yaml')", tmp_path
    )
    assert done.returncode == 1
    assert "call load_config first, in a new process" in done.stderr


def test_a_config_that_was_made_in_python_is_checked_as_a_file_is(tmp_path: Path) -> None:
    data = str(make_dataset(tmp_path / "data"))
    settings: dict[str, Any] = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": "a", "data": data}, {"name": "A", "data": data}],
        "train": {"epochs": 99, "imgszz": 3, "batch": 2},
        "global_batch": 16,
        "new_clients": True,
        "save_dir": str(tmp_path / "runs"),
    }
    with pytest.raises(InputError) as raised, checked(Config.model_validate(settings)):
        pass
    text = "\n".join(raised.value.problems)
    for expected in (
        "train.epochs: set by the federation",
        "train.imgszz: unknown",
        "train.batch and global_batch: found both",
        "the same name as datasets[0]",
        "new_clients: only SuperNodes",
    ):
        assert text.count(expected) == 1, expected


def test_what_is_no_config_is_refused_in_a_line() -> None:
    anything: Any = "config.yaml"
    with pytest.raises(InputError, match=r"run: found str, expected a Config: run\(load_config"):
        api.run(anything)
    calls: list[Any] = [({"base_model": "x"},), ("config.yaml", "num_rounds=5")]
    for wrong in calls:
        with pytest.raises(InputError, match=r"load_config: found .* expected the path"):
            api.load_config(*wrong)
