"""Which loggers are on, and what is said where one cannot be had."""

import json
import os
from pathlib import Path

import pytest
from tracked import config_for, make_clients
from ultralytics.utils import SETTINGS

from federated_yolo.checks.federation import checked
from federated_yolo.common.environment import SETTINGS_OFF, prepare_environment
from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.resume import resume_problems
from federated_yolo.server import tracking as loggers_module
from federated_yolo.server.tracking import (
    LOGGERS,
    is_installed,
    logger_problems,
    loggers_of_settings,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clients(tmp_path)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_before_round_1(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers_module, "is_installed", lambda _: False)
    with (
        pytest.raises(InputError) as caught,
        checked(config_for(folder, loggers=[name], min_clients=9)),
    ):
        pass
    assert caught.value.problems[1:] == [
        f"loggers: '{name}' needs the package {name}; pip install -e \".[{name}]\", or leave it out"
    ]


def test_a_folder_with_the_name_of_a_package_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb_like").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("wandb_like")
    (tmp_path / "wandb_like" / "__init__.py").touch()
    assert is_installed("wandb_like")
    assert logger_problems(("tensorboard",)) == []


def test_loggers_are_off_by_default(folder: Path) -> None:
    assert config_for(folder).loggers == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", ()),
        ("wandb", ("wandb",)),
        ("[tensorboard, mlflow]", ("tensorboard", "mlflow")),
        ("settings", "settings"),
    ],
)
def test_loggers_can_be_named(tmp_path: Path, text: str, expected: object) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base_model: m.pt\ndatasets: [a.yaml]\nloggers: []\n")
    assert load_config(path, [f"loggers={text}"]).loggers == expected
    assert resume_problems([f"loggers={text}"]) == []


@pytest.mark.parametrize("text", ["tensorbord", "[wandb, 3]", "{wandb: true}", "true"])
def test_an_unknown_logger_is_named_with_what_is_right(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"base_model: m.pt\ndatasets: [a.yaml]\nloggers: {text}\n")
    expected = r"^\S+: loggers: found .+, expected a list of tensorboard, wandb and mlflow \(\[\] "
    with pytest.raises(InputError, match=expected + r"for none\), or 'settings'$"):
        load_config(path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{}", ("mlflow",)),  # as in Ultralytics
        ('{"tensorboard": true, "mlflow": false}', ("tensorboard",)),
        ('{"tensorboard": true, "mlflow": true, "wandb": true}', ("tensorboard", "mlflow")),
        ("damaged", ("mlflow",)),
    ],
)
def test_settings_are_those_of_the_user_whose_packages_are_installed(
    settings: str, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers_module, "is_installed", lambda name: name != "wandb")
    use_settings(tmp_path, settings, monkeypatch)
    assert loggers_of_settings() == expected


def use_settings(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare the environment of a user with this settings.json; the private folder."""
    (folder / "Ultralytics").mkdir()
    (folder / "Ultralytics" / "settings.json").write_text(text)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(folder))
    monkeypatch.delenv("FEDERATED_YOLO_CONFIG")
    monkeypatch.setenv("FEDERATED_YOLO_USER_SETTINGS", "")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    prepare_environment()
    return Path(os.environ["FEDERATED_YOLO_CONFIG"])


def test_settings_come_to_names_before_round_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers_module, "is_installed", lambda name: name == "tensorboard")
    use_settings(folder, '{"tensorboard": true}', monkeypatch)
    with checked(config_for(folder, loggers="settings")) as ready:
        assert ready.config.loggers == ("tensorboard",)


def test_the_trainers_of_the_clients_log_nothing_whatever_the_user_has_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(LOGGERS) < set(SETTINGS_OFF)
    everything = json.dumps(dict.fromkeys(SETTINGS_OFF, True))
    private = use_settings(tmp_path, everything, monkeypatch)
    found = json.loads((private / "Ultralytics" / "settings.json").read_text())
    assert not any(found[name] for name in SETTINGS_OFF)
    assert not any(SETTINGS[name] for name in SETTINGS_OFF)  # of this process
