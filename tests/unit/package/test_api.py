"""A run from Python is as safe and as strict as the command's; docs/python.md is in test_docs."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import python
from recipes import make_dataset

import federated_yolo
from federated_yolo import api
from federated_yolo.checks.federation import checked
from federated_yolo.common.environment import restored_verbosity, set_verbosity
from federated_yolo.common.errors import FederationError, InputError
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
    ("before", "config", "expected"),
    [
        ("import ultralytics", "careful", "import from federated_yolo first, in a new process"),
        (
            "import ultralytics; from federated_yolo import YoloClient",
            "careful",
            "import from federated_yolo first, in a new process",
        ),
        (
            "from federated_yolo import load_config; load_config('trusting.yaml')",
            "careful",
            "found false, and Ultralytics was imported with true: ",
        ),
        (
            "from federated_yolo import YoloClient",
            "trusting",
            "found true, and Ultralytics was imported with false: ",
        ),
    ],
)
def test_another_ultralytics_than_the_config_asks_for_is_refused(
    before: str, config: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "careful.yaml").write_text(START)
    (tmp_path / "trusting.yaml").write_text(f"{START}trust_checkpoint: true\n")
    load = f"from federated_yolo import load_config; load_config('{config}.yaml')"
    done = python(f"{before}\n{load}", tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("names", ["YoloClient", "SliceResult", "Federation", "*"])
def test_public_names_are_imported_in_any_order(names: str, tmp_path: Path) -> None:
    """A name that needs Ultralytics leaves it as careful and private as load_config does."""
    (tmp_path / "config.yaml").write_text(START)
    done = python(
        f"from federated_yolo import {names}\n"
        "from ultralytics.utils import SAFE_LOAD, SETTINGS_FILE, ONLINE\n"
        "from federated_yolo import load_config; load_config('config.yaml')\n"
        "print(SAFE_LOAD, 'federated-yolo-' in str(SETTINGS_FILE), ONLINE)",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "True True False\n"), done.stderr


def test_a_client_class_imported_after_a_trusting_config_leaves_it_trusting(
    tmp_path: Path,
) -> None:
    """As in its workers, which import the class before anything else does Ultralytics."""
    (tmp_path / "config.yaml").write_text(f"{START}trust_checkpoint: true\n")
    code = (
        "from federated_yolo.common.environment import prepare_environment\n"
        "prepare_environment(trust_checkpoints=True)\n"
        "from federated_yolo import YoloClient, load_config; load_config('config.yaml')\n"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_listed_before_they_are_imported(tmp_path: Path) -> None:
    done = python(
        "import sys, federated_yolo as f; print(set(f.__all__) <= set(dir(f)), len(f.__all__))\n"
        "print('torch' in sys.modules)",
        tmp_path,
    )
    assert done.stdout == f"True {len(federated_yolo.__all__)}\nFalse\n"


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
    calls += [("config.yaml", wrong) for wrong in ([1], [("a", 1)], [b"a=1"], b"a=1", 5, {"a": 1})]
    for wrong in calls:
        with pytest.raises(InputError, match=r"load_config: found .* expected the path"):
            api.load_config(*wrong)


def test_a_config_is_found_at_home_and_needs_no_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(START)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/config.yaml", Path("~/config.yaml"), tmp_path / "config.yaml"):
        assert api.load_config(path, None) == api.load_config(path, []) == api.load_config(path)


def test_a_second_run_beside_one_in_progress_is_refused_and_later_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(START)
    config = api.load_config(tmp_path / "config.yaml")
    begins, ends = threading.Event(), threading.Event()

    def work(*_: object, **__: object) -> Any:
        begins.set()
        assert ends.wait(60)
        raise FederationError("ended")

    monkeypatch.setattr(api, "_run", work)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(api.run, config)
        assert begins.wait(60)
        with pytest.raises(InputError, match="another run is in progress in this process"):
            api.run(config)
        ends.set()
        assert isinstance(first.exception(60), FederationError)
    with pytest.raises(FederationError, match="ended"):
        api.run(config)


def test_each_run_is_as_verbose_as_its_config_says_whatever_ran_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(name) for name in ("ultralytics", "flwr", "ray")]
    monkeypatch.setenv("YOLO_VERBOSE", "false")
    (tmp_path / "config.yaml").write_text(START)
    shown: list[tuple[bool, bool, str]] = []

    def work(config: Config, **_: object) -> Any:
        set_verbosity(verbose=config.verbose)
        flower, ray = (logger.isEnabledFor(logging.WARNING) for logger in loggers[1:])
        shown.append((flower, ray, os.environ["YOLO_VERBOSE"]))

    monkeypatch.setattr(api, "_run", work)
    before = [logger.level for logger in loggers]
    for verbose in ("false", "true", "false"):
        api.run(api.load_config(tmp_path / "config.yaml", [f"verbose={verbose}"]))
        assert [logger.level for logger in loggers] == before
    quiet, loud = (False, False, "false"), (True, True, "true")
    assert shown == [quiet, loud, quiet]
    with restored_verbosity():
        set_verbosity(verbose=False)
        set_verbosity(verbose=True)
        assert all(logger.isEnabledFor(logging.INFO) for logger in loggers)
