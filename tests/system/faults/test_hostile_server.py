"""A site does for a server only what the bundle that it has reviewed would be told."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from recipes import file_digests
from sites import node_config, run, sites

from federated_yolo.client import (
    app as app_module,
)
from federated_yolo.client import (
    custom_class as custom_class_module,
)
from federated_yolo.client import (
    workspace as workspace_module,
)
from federated_yolo.client.instruction_checks import client_problems, model_yaml_problems
from federated_yolo.yolo.checkpoint import structure_of
from federated_yolo.yolo.class_branch import Architecture, without_downloads

TOUCH = (
    "from pathlib import Path\nPath({marker!r}).touch()\nfrom federated_yolo import YoloClient\n"
)


class Site:
    """A site, and what an honest server has sent to it."""

    def __init__(self, folder: Path) -> None:
        grid = sites(folder, "north")
        run(grid, folder, num_rounds=1, evaluate={"every": 1})
        self.folder = folder
        self.marker = folder / "executed"
        self.sent = {message.metadata.message_type: message for message in grid.sent}
        self.config = node_config(folder, "north")

    def answer(self, kind: str, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> str:
        """The reason of the site's refusal of a message whose config was changed.

        change: of the instructions, and of the rest of the config. "" for an answer that is none.
        """
        honest = self.sent[kind]
        config: dict[str, Any] = dict(honest.content.config_records["config"])
        instructions = json.loads(config["instructions"])
        change(instructions, config)
        config["instructions"] = json.dumps(instructions)
        content = RecordDict({**honest.content, "config": ConfigRecord(config)})
        message = Message(content, honest.metadata.dst_node_id, kind)
        message.metadata.__dict__["_message_id"] = "changed"
        context = Context(1, honest.metadata.dst_node_id, self.config, RecordDict(), {})
        workspace_module.held_clients.clear()
        reply = app_module.app(message, context)
        return str(reply.error.reason) if reply.has_error() else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def layer(instructions: dict[str, Any], *arguments: Any) -> None:
    instructions["architecture"]["yaml"]["backbone"][0] = list(arguments)


# What is changed in the instructions, or in the config beside them -> what the answer says.
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "caches in the data folder": ("train", lambda i, _: i["train"].update(cache="disk"), "cache"),
    "a folder to write to": ("train", lambda i, _: i["train"].update(save_dir="/x"), "save_dir"),
    "another data set": ("train", lambda i, _: i["train"].update(data="/etc"), "train.data"),
    "a checkpoint to load": ("train", lambda i, _: i["train"].update(pretrained="a.pt"), "a path"),
    "a config file": ("train", lambda i, _: i["train"].update(cfg="a.yaml"), "train.cfg"),
    "compiled code": ("train", lambda i, _: i["train"].update(compile=True), "train.compile"),
    "processes beyond any": ("train", lambda i, _: i["train"].update(workers=10**6), "workers"),
    "a batch beyond any": ("train", lambda i, _: i["train"].update(batch=10**9), "train.batch"),
    "an unknown argument": ("train", lambda i, _: i["train"].update(hook="x"), "train.hook"),
    "the train split scored": ("evaluate", lambda _, c: c.update(split="train"), "split: found"),
    "a folder outside": ("train", lambda i, _: i.update(run_id="../../up"), "run_id"),
    "a start that is none": ("train", lambda i, _: i.update(start_id="a/b"), "start_id"),
    "a task that is none": ("query", lambda i, _: i.update(task="semantic"), "task: found"),
    "epochs beyond any": ("train", lambda i, _: i.update(local_epochs=10**9), "local_epochs"),
    "rounds beyond any": ("train", lambda i, _: i.update(num_rounds=10**9), "num_rounds"),
    "a round after the last": (
        "train",
        lambda _, c: c.update({"server-round": 99}),
        "server-round",
    ),
    "a round before the first": (
        "train",
        lambda _, c: c.update({"server-round": 0}),
        "server-round",
    ),
    "averages beyond any": (
        "train",
        lambda i, _: i.update(averages_per_round=10**9),
        "averages_per_round: found 1000000000",
    ),
    "a part beyond the last": ("train", lambda _, c: c.update(part=2), "part: found 2, expected 1"),
    "a pull that is none": ("train", lambda _, c: c.update({"proximal-mu": -1.0}), "proximal-mu"),
    "a training for itself without end": (
        "train",
        lambda _, c: c.update({"epochs": 10**9}),
        "epochs: found 1000000000",
    ),
    "a learning rate that is none": ("train", lambda _, c: c.update({"lr0": -1.0}), "lr0: found"),
    "scores of a split, perhaps": ("train", lambda _, c: c.update({"on-test": 3}), "on-test"),
    "no classes": ("train", lambda i, _: i.update(names=[]), "names: found 0"),
    "a class twice": ("train", lambda i, _: i.update(names=["a", "a", "b"]), "names: found 3"),
    "no time": ("train", lambda i, _: i.update(round_timeout_s=-1.0), "round_timeout_s"),
    "words for a number": ("train", lambda i, _: i.update(num_rounds="many"), "num_rounds"),
    "a class branch as large as the machine": (
        "query",
        lambda i, _: i["architecture"]["class_branch"].update(
            {"model.22.cv3.0.0.conv.weight": [10**6, 64, 3, 3]}
        ),
        "class_branch: found",
    ),
    "code for an activation": (
        "query",
        lambda i, _: i["architecture"]["yaml"].update(activation="__import__('os').getcwd()"),
        "activation",
    ),
    "weights to download": (
        "query",
        lambda i, _: layer(i, -1, 1, "TorchVision", [64, "resnet18", "DEFAULT"]),
        "would download",
    ),
    "weights of a backbone's backbone": (
        "query",
        lambda i, _: layer(i, -1, 1, "TorchVision", [64, "fasterrcnn_resnet50_fpn", None]),
        "expected a classifier",
    ),
    "a model that reads a file": (
        "query",
        lambda i, _: layer(i, -1, 1, "DetectionModel", ["/etc/x.yaml"]),
        "expected a layer",
    ),
    "what is no layer": ("query", lambda i, _: layer(i, -1, 1, "torch_safe_load", ["x"]), "layer"),
    "a layer beyond any": ("query", lambda i, _: layer(i, -1, 10**4, "Conv", [64]), "repeats"),
    "a width beyond any": ("query", lambda i, _: layer(i, -1, 1, "Conv", [10**12]), "numbers"),
}


@pytest.mark.parametrize(("kind", "change", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_a_site_refuses_what_no_server_tells_and_both_are_told_so(
    kind: str,
    change: Callable[[dict[str, Any], dict[str, Any]], Any],
    reason: str,
    site: Site,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = file_digests(site.folder)
    with caplog.at_level(logging.ERROR):
        answer = site.answer(kind, change)
    assert answer.startswith("told by the server: ")
    assert reason in answer
    assert "\n" not in answer
    assert reason in caplog.text
    after = file_digests(site.folder)
    journal = {f"private/north/{name}" for name in ("site.log", "status.json")}
    assert {name for name in before | after if before.get(name) != after.get(name)} <= journal
    assert not (site.folder.parent / "up").exists()


@pytest.mark.parametrize("form", ["an absolute path", "a path that leads out"])
def test_a_site_runs_no_class_but_of_the_bundle(form: str, site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(TOUCH.format(marker=str(marker)))
    out = "../" * (len(custom_class_module.ROOT.parts) - 1)
    file = f"{tmp_path}/evil.py" if form == "an absolute path" else f"{out}{tmp_path}/evil.py"
    answer = site.answer("query", lambda i, _: i.update(client=f"{file}:YoloClient"))
    assert not marker.exists()
    assert answer.startswith("told by the server: client: ")


def test_a_link_in_the_bundle_leads_no_class_in(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "mine.py").write_text("")
    (bundle / "linked.py").symlink_to(tmp_path / "evil.py")
    (bundle / "same.py").symlink_to(bundle / "mine.py")
    assert not list(client_problems("", bundle))
    assert not list(client_problems("mine.py:Mine", bundle))
    assert not list(client_problems("same.py:Mine", bundle))
    assert list(client_problems("linked.py:Mine", bundle))
    assert list(client_problems("a\0b.py:Mine", bundle))


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_what_an_honest_server_tells_is_done(kind: str, site: Site) -> None:
    assert site.answer(kind, lambda *_: None) == ""


def test_a_hello_of_another_task_is_refused(site: Site) -> None:
    hello = site.sent["query.hello"]
    told = json.loads(str(hello.content.config_records["config"]["hello"]))
    told["task"] = "semantic"
    content = RecordDict({"config": ConfigRecord({"hello": json.dumps(told)})})
    context = Context(1, 1, site.config, RecordDict(), {})
    reply = app_module.app(Message(content, 1, "query.hello"), context)
    assert "told by the server: task 'semantic'; refused" in str(reply.error.reason)


def test_a_backbone_of_torchvision_travels_to_sites_without_its_weights() -> None:
    structure = structure_of("yolo11-cls-resnet18.yaml", where="test")
    assert list(model_yaml_problems(structure))
    told = dict(without_downloads(Architecture(structure)).yaml)
    assert not list(model_yaml_problems(told))
    assert told["backbone"][0][3] == [512, "resnet18", None, True, 2]
    assert structure["backbone"][0][3][2] == "DEFAULT"
