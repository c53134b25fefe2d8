"""What is checked before round 1: model, machine, folders, and the clients' data together."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from utils.config import Config, InputError
from utils.simulation import checked, num_cpus

Sites = dict[str, Path]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """The data.yaml of two sound clients; tests only read them."""
    folder = tmp_path_factory.mktemp("sites")
    return {
        name: helpers.make_dataset(folder / name, num_train=2, num_val=1, seed=seed)
        for seed, name in enumerate(("north", "south"))
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    return helpers.make_checkpoint(tmp_path_factory.mktemp("model") / "base.pt")


def config_of(folder: Path, sites: Sites, **settings: Any) -> Config:
    """A sound config, but for these settings."""
    sound = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": name, "data": str(path)} for name, path in sites.items()],
        "save_dir": str(folder / "runs"),
    }
    return Config.model_validate({**sound, **settings})


def problems_of(config: Config) -> list[str]:
    """The lines of the InputError that checking this config raises."""
    with pytest.raises(InputError) as caught, checked(config):
        pass
    for line in caught.value.problems:
        assert "\n" not in line
        assert "\x1b" not in line
    return caught.value.problems


def test_a_sound_config_passes_and_leaves_nothing_behind(tmp_path: Path, sites: Sites) -> None:
    with checked(config_of(tmp_path, sites)) as federation:
        assert (federation.task, federation.names) == ("detect", ("a", "b", "c"))
        assert [s.num_train for s in federation.summaries.values()] == [2, 2]
        assert federation.config.client_resources.num_gpus == (
            1 if torch.cuda.is_available() else 0
        )
        assert (federation.caches / "south" / "train.cache").is_file()
    assert not federation.caches.exists()
    assert not (tmp_path / "runs").exists()


def test_all_problems_are_reported_at_once(tmp_path: Path, sites: Sites) -> None:
    broken = helpers.make_dataset(tmp_path / "broken")
    (tmp_path / "broken" / "images" / "train" / "0.jpg").write_bytes(b"")
    (tmp_path / "broken" / "labels" / "val" / "1.txt").write_text("9 0.5 0.5 0.1 0.1")
    other = helpers.make_dataset(tmp_path / "other", names=("a", "b"))
    (tmp_path / "file").touch()
    config = config_of(
        tmp_path,
        {**sites, "broken": broken, "other": other, "lost": tmp_path / "lost.yaml"},
        base_model="none.pt",
        strategy="fedavgg",
        client_resources={"num_cpus": 10_000, "num_gpus": 10_000},
        save_dir=str(tmp_path / "file" / "runs"),
        train={"pretrained": "none_either.pt"},
        evaluate={"data": "server.yaml"},
    )
    starts = [
        "strategy.name: found 'fedavgg'",
        "client_resources.num_cpus: found 10000",
        "client_resources.num_gpus: found 10000",
        f"save_dir '{tmp_path}/file/runs': {tmp_path}/file is not a directory",
        "base_model 'none.pt': no such file",
        "train.pretrained 'none_either.pt': no such file",
        f"datasets[2] 'broken' ({broken}): train: {tmp_path}/broken/images/train/0.jpg: ",
        f"datasets[2] 'broken' ({broken}): val: {tmp_path}/broken/images/val/1.jpg: ",
        f"datasets[4] 'lost' ({tmp_path}/lost.yaml): no such file",
        "evaluate.data (server.yaml): no such file",
        f"datasets[3] 'other' ({other}): classes [a, b]; datasets[0] 'north'",
    ]
    problems = problems_of(config)
    assert len(problems) == len(starts)
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


# Strategy, machine, folders


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("fedavgg", "strategy.name: found 'fedavgg', expected one of "),
        ({"name": "fedavg", "momentum": 0.9}, "strategy.momentum: unknown option of fedavg"),
        ({"nam": "fedavg"}, "strategy.nam: unknown option of fedavg"),
    ],
)
def test_an_unknown_strategy_or_option_is_refused(
    tmp_path: Path, sites: Sites, strategy: object, expected: str
) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, strategy=strategy))
    assert problem.startswith(expected)


def test_a_strategy_that_is_nearly_right_is_suggested(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, strategy="fedavgg"))
    assert problem.endswith("; did you mean 'fedavg'?")


def test_more_cpus_than_the_machine_has_are_refused(tmp_path: Path, sites: Sites) -> None:
    num = num_cpus() + 1
    (problem,) = problems_of(config_of(tmp_path, sites, client_resources={"num_cpus": num}))
    expected = f"found {num}, this machine has {num_cpus()}; lower it"
    assert problem == f"client_resources.num_cpus: {expected}"


def test_more_gpus_than_the_machine_has_are_refused(tmp_path: Path, sites: Sites) -> None:
    num = torch.cuda.device_count() + 1
    (problem,) = problems_of(config_of(tmp_path, sites, client_resources={"num_gpus": num}))
    assert problem == (
        f"client_resources.num_gpus: found {num}, this machine has {num - 1}; lower it, or use "
        "auto (which trains on the CPU where there is no GPU)"
    )


def test_a_save_dir_below_a_file_is_refused(tmp_path: Path, sites: Sites) -> None:
    (tmp_path / "notes.txt").touch()
    save_dir = tmp_path / "notes.txt" / "runs" / "a"
    (problem,) = problems_of(config_of(tmp_path, sites, save_dir=str(save_dir)))
    assert problem == (
        f"save_dir '{save_dir}': {tmp_path}/notes.txt is not a directory; choose another save_dir"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_save_dir_that_cannot_be_written_is_refused(tmp_path: Path, sites: Sites) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    (problem,) = problems_of(config_of(tmp_path, sites, save_dir=str(tmp_path / "locked" / "runs")))
    assert problem.endswith("locked is not writable; choose another save_dir")


# Classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b", "x"), "classes [a, b, x]"),
        (("b", "a", "c"), "the same classes in another order [b, a, c]"),
        (("a", "b"), "classes [a, b]"),
        (("a", "b", "c", "d"), "classes [a, b, c, d]"),
        (("A", "b", "c"), "classes [A, b, c]"),
    ],
)
def test_class_names_that_differ_are_refused(
    tmp_path: Path, sites: Sites, names: tuple[str, ...], expected: str
) -> None:
    other = helpers.make_dataset(tmp_path / "other", num_train=1, num_val=1, names=names)
    (problem,) = problems_of(config_of(tmp_path, {**sites, "other": other}))
    assert problem == (
        f"datasets[2] 'other' ({other}): {expected}; datasets[0] 'north' ({sites['north']}) has "
        "[a, b, c]; give all data sets the same names in the same order"
    )


def test_the_servers_data_must_exist(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, evaluate={"data": "server.yaml"}))
    expected = "no such file; expected an Ultralytics data.yaml"
    assert problem == f"evaluate.data (server.yaml): {expected}"


def test_the_servers_data_must_have_the_same_classes(tmp_path: Path, sites: Sites) -> None:
    server = helpers.make_dataset(tmp_path / "server", num_val=1, names=("b", "a", "c"))
    (problem,) = problems_of(config_of(tmp_path, sites, evaluate={"data": str(server)}))
    assert problem.startswith(
        f"evaluate.data ({server}): the same classes in another order [b, a, c]; datasets[0]"
    )


def test_the_servers_data_needs_no_training_images(tmp_path: Path, sites: Sites) -> None:
    server = helpers.make_dataset(tmp_path / "server", num_train=0, num_val=1)
    with checked(config_of(tmp_path, sites, evaluate={"data": str(server)})) as federation:
        assert federation.server_data is not None


# The base model


def write_text(path: Path) -> None:
    path.write_text("these are no weights")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "these are no weights")


def write_nothing(path: Path) -> None:
    path.touch()


def write_state_dict(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def write_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


NO_CHECKPOINTS = [write_text, write_zip, write_nothing, write_state_dict, write_tensor]


def describe_refusal(where: str) -> str:
    return f"{where}: (not an Ultralytics checkpoint that is safe to load: .+|the file holds no mo)"


@pytest.mark.parametrize("write", NO_CHECKPOINTS)
def test_a_base_model_that_is_no_checkpoint_is_refused(
    tmp_path: Path, sites: Sites, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "base.pt"
    write(path)
    with (
        pytest.raises(InputError, match=describe_refusal(f"^base_model '{path}'")),
        checked(config_of(tmp_path, sites, base_model=str(path))),
    ):
        pass


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_base_model_is_refused(
    tmp_path: Path, sites: Sites, checkpoint: Path, part: float
) -> None:
    path = tmp_path / "base.pt"
    data = checkpoint.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    expected = "not an Ultralytics checkpoint that is safe to load: "
    assert problem.startswith(f"base_model '{path}': {expected}")


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("setting", ["base_model", "pretrained"])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, sites: Sites, legacy: bool, setting: str
) -> None:
    path, marker = tmp_path / "base.pt", tmp_path / "executed"
    torch.save({"model": Touch(marker)}, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would work
    marker.unlink()
    settings = {"base_model": str(path)}
    if setting == "pretrained":
        settings = {"train": {"pretrained": str(path)}}
    (problem,) = problems_of(config_of(tmp_path, sites, **settings))
    assert "not an Ultralytics checkpoint that is safe to load: " in problem
    assert not marker.exists()


@pytest.mark.parametrize(
    ("base_model", "expected"),
    [
        (
            "none.pt",
            "no such file; weights are not downloaded, so put the .pt there or train from a model "
            "YAML such as yolo11n.yaml",
        ),
        ("none.yaml", "no such file, and no model of that name comes with Ultralytics"),
        ("yolo11n", "expected a .pt checkpoint or a model YAML, e.g. yolo11n.yaml"),
        ("yolo11n.onnx", "expected a .pt checkpoint or a model YAML, e.g. yolo11n.yaml"),
        ("yolov8n-cls.yaml", "task 'classify'; expected one of detect, segment, pose, obb"),
        ("yolov8n-clss.yaml", "no such file, and no model of that name comes with Ultralytics"),
    ],
)
def test_a_base_model_that_cannot_be_used_is_refused(
    tmp_path: Path, sites: Sites, base_model: str, expected: str
) -> None:
    problems = problems_of(config_of(tmp_path, sites, base_model=base_model))
    assert problems == [f"base_model '{base_model}': {expected}"]


def test_a_checkpoint_of_a_classifier_is_refused(tmp_path: Path, sites: Sites) -> None:
    from ultralytics.nn.tasks import ClassificationModel

    path = tmp_path / "classifier.pt"
    torch.save({"model": ClassificationModel("yolov8n-cls.yaml", verbose=False)}, path)
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    expected = "task 'classify'; expected one of detect, segment, pose, obb"
    assert problem == f"base_model '{path}': {expected}"


@pytest.mark.parametrize(
    "text", ["", "- 1", "hello", "head: []", "train: a\nval: b\nnames: [c]", "a: [1"]
)
def test_a_yaml_that_is_no_model_is_refused(tmp_path: Path, sites: Sites, text: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    assert problem.startswith(f"base_model '{path}': not a model YAML")


@pytest.mark.parametrize("layer", ["[-1, 1, Nonsense, [16, 3]]", "[7, 1, Conv, [16, 3]]", "[]"])
def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, sites: Sites, layer: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(f"nc: 3\nbackbone:\n  - {layer}\nhead:\n  - [[0], 1, Detect, [nc]]\n")
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    assert problem.startswith(f"base_model '{path}': cannot be built: ")


def test_missing_pretrained_weights_are_refused(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, train={"pretrained": "none.pt"}))
    assert problem.startswith("train.pretrained 'none.pt': no such file; ")


@pytest.mark.parametrize("write", NO_CHECKPOINTS)
def test_damaged_pretrained_weights_are_refused(
    tmp_path: Path, sites: Sites, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    with (
        pytest.raises(InputError, match=describe_refusal(f"^train.pretrained '{path}'")),
        checked(config_of(tmp_path, sites, train={"pretrained": str(path)})),
    ):
        pass


def test_a_sound_checkpoint_passes_as_base_model_and_as_pretrained(
    tmp_path: Path, sites: Sites, checkpoint: Path
) -> None:
    expected = torch.load(checkpoint, weights_only=False)["model"].state_dict()
    for settings in (
        {"base_model": str(checkpoint)},
        {"train": {"pretrained": str(checkpoint)}},
    ):
        with checked(config_of(tmp_path, sites, **settings)) as federation:
            state = federation.model.state_dict()
        assert torch.equal(state["model.0.conv.weight"], expected["model.0.conv.weight"])
