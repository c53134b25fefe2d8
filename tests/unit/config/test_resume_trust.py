"""A run directory neither trusts nor runs nor connects without a word of the user."""

import shlex
from pathlib import Path

import pytest
import yaml

from federated_yolo.cli import parse
from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.schema import Config


def test_a_run_directory_neither_trusts_nor_runs_nor_connects(tmp_path: Path) -> None:
    settings = {
        "base_model": "yolov8n.yaml",
        "datasets": ["data.yaml"],
        "trust_checkpoint": True,
        "client": "/theirs/evil one.py:Mine",
        "ray": {"address": "203.0.113.7:6379"},
        "loggers": ["tensorboard", "wandb"],
    }
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError) as error:
        parse([f"resume={tmp_path}"])
    words = [
        "trust_checkpoint=true",
        "'client=/theirs/evil one.py:Mine'",
        "ray.address=203.0.113.7:6379",
        "'loggers=[tensorboard,wandb]'",
    ]
    lines = error.value.problems
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert line.startswith(f"{tmp_path / 'args.yaml'}: ")
        assert f"add {word} if you trust whoever made it, or " in line
    said = [shlex.split(word)[0] for word in words]
    with pytest.raises(InputError, match=r"args\.yaml: client: found /theirs/evil one\.py:Mine"):
        parse([f"resume={tmp_path}", *(word for word in said if not word.startswith("client="))])
    again = parse([f"resume={tmp_path}", *said])
    assert again.trusts_checkpoint()
    # As the message says, without them.
    without = ["trust_checkpoint=false", "client=null", "ray.address=null", "loggers=[]"]
    command = parse([f"resume={tmp_path}", *without])
    assert not command.trusts_checkpoint()
    config = load_config(command.config_file, command.overrides)
    assert (config.client, config.ray.address, config.loggers) == (None, None, ())


def test_a_run_that_neither_trusts_nor_runs_nor_connects_resumes_as_it_is(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"base_model": "yolov8n.yaml", "datasets": ["a.yaml"], "loggers": ["tensorboard"]}
    )
    (tmp_path / "args.yaml").write_text(config.to_yaml())
    assert parse([f"resume={tmp_path}"]).overrides == []
