"""What is checked before round 1: model, machine, folders, and the clients' data together."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
from sound_configs import Sites, config_of, problems_of
from ultralytics.utils.metrics import OKS_SIGMA

from federated_yolo.checks.federation import checked
from federated_yolo.common.environment import num_cpus
from federated_yolo.config.loading import load_config
from federated_yolo.data.summary import DataSummary, form_problems
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint


def test_a_sound_config_passes_and_leaves_nothing_behind(tmp_path: Path, sites: Sites) -> None:
    with checked(config_of(tmp_path, sites)) as federation:
        assert (federation.task, federation.names) == ("detect", ("a", "b", "c"))
        assert [s.num_train for s in federation.summaries.values()] == [2, 2]
        share = federation.config.client_resources.num_gpus
        assert isinstance(share, float)
        assert bool(share) == torch.cuda.is_available()
        assert (federation.caches / "south" / "train.cache").is_file()
    assert not federation.caches.exists()
    assert not (tmp_path / "runs").exists()


def test_all_problems_are_reported_at_once(tmp_path: Path, sites: Sites) -> None:
    broken = recipes.make_dataset(tmp_path / "broken")
    (tmp_path / "broken" / "images" / "train" / "0.jpg").write_bytes(b"")
    (tmp_path / "broken" / "labels" / "val" / "1.txt").write_text("9 0.5 0.5 0.1 0.1")
    other = recipes.make_dataset(tmp_path / "other", names=("A", "b"))
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
        "'other': class 'A' and 'a' of 'north' differ only in case or spaces",
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


def test_class_names_that_differ_only_in_case_are_refused(tmp_path: Path, sites: Sites) -> None:
    other = recipes.make_dataset(tmp_path / "other", num_train=1, names=("a ", "B", "c"))
    assert problems_of(config_of(tmp_path, {**sites, "other": other})) == [
        "'other': class 'B' and 'b' of 'north' differ only in case or spaces; write them alike, or "
        "list both under names if they are two classes"
    ]


def test_classes_outside_the_federations_names_are_refused(tmp_path: Path, sites: Sites) -> None:
    server = recipes.make_dataset(tmp_path / "server", num_val=3, names=("a", "cc"))
    config = config_of(tmp_path, sites, evaluate={"data": str(server)}, names=["b", "a", "c"])
    (problem,) = problems_of(config)
    assert problem == (
        "evaluate.data: class 'cc' is not one of the federation's [b, a, c]; did you mean 'c'?; "
        "add it under names, or correct it"
    )


def test_a_class_named_twice_is_refused(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, names=["a", "b", "c", "a"]))
    assert problem.startswith("names: found a class twice in [a, b, c, a]")


def test_not_annotated_classes_must_be_the_clients_own(tmp_path: Path, sites: Sites) -> None:
    config = config_of(tmp_path, sites)
    first = config.clients[0].model_copy(update={"not_annotated": ("b", "x")})
    (problem,) = problems_of(config.model_copy(update={"datasets": [first, *config.clients[1:]]}))
    assert problem == "datasets[0] 'north': not_annotated: 'x' is not one of its classes [a, b, c]"


def test_a_val_split_without_labels_is_refused(tmp_path: Path, sites: Sites) -> None:
    west = recipes.make_dataset(tmp_path / "west", num_train=1, num_val=3)
    for label in (tmp_path / "west" / "labels" / "val").iterdir():
        label.write_text("")
    (problem,) = problems_of(config_of(tmp_path, {**sites, "west": west}))
    assert "'west'" in problem
    assert "val: none of the" in problem
    assert "so that every model would score 0" in problem


def pose_sites(folder: Path, **said: str) -> Sites:
    """Clients of two keypoints; said: more lines of their data.yaml."""
    sites = {}
    for name, lines in said.items():
        names = ("b", "a") if "b, a" in lines else ("a", "b")
        path = recipes.make_data(folder / name, "pose", num_train=2, num_val=1, names=names)
        path.write_text(path.read_text().replace("flip_idx: [1, 0]\n", "") + lines)
        sites[name] = path
    return sites


def test_what_clients_say_of_keypoints_goes_to_the_model_by_class_name(tmp_path: Path) -> None:
    sites = pose_sites(
        tmp_path,
        north="kpt_names: {1: [tail, nose]}\n",
        south="# b, a\nkpt_names: {0: [tail, nose], '1': [left, right]}\n"
        "kpt_oks_sigmas: [0.5, 0.5]",  # Ultralytics' own for two keypoints
        west="flip_idx: [1, 0]\n",
    )
    config = config_of(tmp_path, sites, base_model="yolov8n-pose.yaml")
    with checked(config) as federation:
        save_checkpoint(tmp_path / "model.pt", federation.model)
        alone = checked(config_of(tmp_path, {"west": sites["west"]}, base_model=config.base_model))
        with alone as federation:
            west: Any = federation.model
    model: Any = load_checkpoint_module(str(tmp_path / "model.pt"), where="test")
    assert model.kpt_names == {0: ["left", "right"], 1: ["tail", "nose"]}
    assert model.kpt_oks_sigmas == [0.5, 0.5]
    # As a training of `yolo train` has it, where nothing is said.
    assert west.kpt_names == {0: ["0", "1"], 1: ["0", "1"]}
    assert west.kpt_oks_sigmas is None


def test_clients_that_mean_other_keypoints_are_refused(tmp_path: Path) -> None:
    sites = pose_sites(
        tmp_path,
        silent="",
        usual="kpt_oks_sigmas: [0.5, 0.5]",
        north="kpt_names: {0: [left, right], 1: [tail, nose]}\nflip_idx: [1, 0]",
        south="# b, a\nkpt_names: {0: [tail, snout]}\nflip_idx: [0, 1]",
        west="kpt_names: {0: [left, right]}\nkpt_oks_sigmas: [0.5, 0.2]",
    )
    config = config_of(tmp_path, sites, base_model="yolov8n-pose.yaml")
    end = "all data sets that say it need the same"
    assert problems_of(config) == [
        "datasets[3] 'south': flip_idx: 0 for keypoint 0, datasets[2] 'north' has 1; " + end,
        "datasets[3] 'south': kpt_names of 'b': snout for keypoint 1, datasets[2] 'north' has "
        f"nose; {end}",
        "datasets[4] 'west': kpt_oks_sigmas: 0.2 for keypoint 1, datasets[0] 'silent' has 0.5 "
        "(Ultralytics' default, since it says none); all data sets need the same",
    ]


def test_sigmas_that_are_not_said_are_those_of_ultralytics() -> None:
    coco = DataSummary(("a",), 1, 1, num_test=0, class_counts=(1,), kpt_shape=(17, 3))
    said = replace(coco, kpt_oks_sigmas=tuple(float(f"{s:.3f}") for s in OKS_SIGMA))
    assert form_problems(coco, {"other": said}) == []
    assert form_problems(coco, {"other": replace(said, kpt_oks_sigmas=(1 / 17,) * 17)}) == [
        "kpt_oks_sigmas: 0.026 (Ultralytics' default, since it says none) for keypoint 0, other "
        "has 0.0588; all data sets need the same"
    ]
    three = replace(coco, kpt_shape=(3, 3))
    assert form_problems(replace(three, kpt_oks_sigmas=(0.333,) * 3), {"other": three}) == []


def test_other_channels_than_the_first_clients_are_refused(tmp_path: Path, sites: Sites) -> None:
    server = recipes.make_dataset(tmp_path / "server", num_val=2)
    server.write_text(server.read_text() + "channels: 1\n")
    (problem,) = problems_of(config_of(tmp_path, sites, evaluate={"data": str(server)}))
    assert problem.startswith("evaluate.data: channels 1, datasets[0] 'north' has 3;")


@pytest.mark.parametrize("classes", [[0, 7], [-1], [], 3])
def test_class_indices_that_do_not_exist_are_refused(
    tmp_path: Path, sites: Sites, classes: object
) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, train={"classes": classes}))
    assert problem == f"train.classes: found {classes}, expected indices of [a, b, c] from 0"


@pytest.mark.parametrize(
    "shared", [{"parts": ["backbone"]}, {"batchnorm": "local"}, {"parts": ["neck", "head"]}]
)
def test_the_server_cannot_evaluate_what_it_does_not_have(
    tmp_path: Path, sites: Sites, shared: dict
) -> None:
    evaluate = {"data": str(sites["north"])}
    (problem,) = problems_of(config_of(tmp_path, sites, shared=shared, evaluate=evaluate))
    assert problem.startswith("evaluate.data: the server has no whole model to evaluate with")
    (problem,) = problems_of(config_of(tmp_path, sites, shared=shared, evaluate={"every": 0}))
    assert problem.startswith("evaluate.every: 0 would leave no model")
    with checked(config_of(tmp_path, sites, shared=shared)):
        pass


def test_freezing_batchnorm_that_is_not_frozen_is_refused(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, shared={"freeze_after": 3}))
    assert problem.startswith("shared.freeze_after: has no effect with shared.batchnorm average")


def test_a_strategy_that_needs_more_clients_is_refused(tmp_path: Path, sites: Sites) -> None:
    config = config_of(tmp_path, sites, strategy={"name": "krum", "num_malicious_nodes": 1})
    (problem,) = problems_of(config)
    assert problem == (
        "strategy.name: krum with num_malicious_nodes=1 needs 5 clients in a round, found 2; add "
        "clients, or use fedavg"
    )


@pytest.mark.parametrize(("imgsz", "expected"), [(100, 128), (64, 64), (33, 64)])
def test_image_sizes_become_whole_strides_for_training_and_evaluation_alike(
    tmp_path: Path, sites: Sites, imgsz: int, expected: int
) -> None:
    with checked(config_of(tmp_path, sites, train={"imgsz": imgsz})) as federation:
        assert federation.config.train["imgsz"] == expected


# What is resolved once for all clients


def resolved(tmp_path: Path, sites: Sites, **settings: Any) -> dict[str, Any]:
    with checked(config_of(tmp_path, sites, **settings)) as federation:
        assert federation.config.global_batch is None
        return federation.config.train


def test_the_default_batch_is_shared_out_over_the_clients_of_a_round(
    tmp_path: Path, sites: Sites
) -> None:
    train = resolved(tmp_path, sites, train={})
    assert (train["batch"], train["nbs"]) == (8, 8)
    # 0.002 * 5 / (4 + 3 classes), times the square root of 16 / 8
    assert train["lr0"] == pytest.approx(0.001429 * 2**0.5)
    assert train["optimizer"] == "AdamW"
    train = resolved(tmp_path, sites, train={}, fraction_train=0.5)
    assert train["batch"] == 16
    assert train["lr0"] == 0.001429
    assert resolved(tmp_path, sites, train={}, global_batch=6)["batch"] == 3
    assert resolved(tmp_path, sites, train={}, global_batch=1)["batch"] == 2


def test_a_clients_own_batch_and_optimizer_stay_as_given(tmp_path: Path, sites: Sites) -> None:
    train = resolved(tmp_path, sites, train={"batch": 4})
    assert (train["batch"], train["nbs"], train["lr0"]) == (4, 4, 0.001429)
    train = resolved(tmp_path, sites, train={"optimizer": "SGD", "lr0": 0.01, "nbs": 64})
    assert (train["batch"], train["nbs"], train["lr0"]) == (8, 64, 0.01)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train": {}}, 0.001429),  # and 0.002021 in the rounds
        ({"train": {}, "personalise": {"lr0": 0.5}}, 0.5),
        ({"train": {"batch": 4}}, 0.001429),
        ({"train": {"optimizer": "SGD", "lr0": 0.02}}, 0.02),
        ({"train": {"optimizer": "AdamW"}}, 0.01),  # Ultralytics' own
    ],
)
def test_a_client_that_trains_alone_has_the_learning_rate_without_the_factor(
    tmp_path: Path, sites: Sites, settings: dict[str, Any], expected: float
) -> None:
    with checked(config_of(tmp_path, sites, **settings)) as federation:
        assert federation.config.personalise.lr0 == expected
        (tmp_path / "args.yaml").write_text(federation.config.to_yaml())
    later = load_config(tmp_path / "args.yaml", ["personalise.epochs=5"])  # as a resumed run has it
    with checked(later) as again:
        assert (again.config.personalise.epochs, again.config.personalise.lr0) == (5, expected)


def test_what_is_resolved_is_resolved_to_itself(tmp_path: Path, sites: Sites) -> None:
    """args.yaml has the resolved settings, and running it again must be the same run."""
    with checked(config_of(tmp_path, sites, train={"imgsz": 50})) as federation:
        (tmp_path / "args.yaml").write_text(federation.config.to_yaml())
    with checked(load_config(tmp_path / "args.yaml")) as again:
        assert again.config == federation.config


def test_with_a_single_class_the_optimizer_is_chosen_for_one(tmp_path: Path, sites: Sites) -> None:
    train = resolved(tmp_path, sites, train={"single_cls": True, "batch": 2})
    assert train["lr0"] == 0.002


def test_the_servers_data_must_exist(tmp_path: Path, sites: Sites) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, evaluate={"data": "server.yaml"}))
    expected = "no such file; expected an Ultralytics data.yaml"
    assert problem == f"evaluate.data (server.yaml): {expected}"


def test_the_servers_data_needs_no_training_images(tmp_path: Path, sites: Sites) -> None:
    server = recipes.make_dataset(tmp_path / "server", num_train=0, num_val=1)
    with checked(config_of(tmp_path, sites, evaluate={"data": str(server)})) as federation:
        assert federation.server_data is not None
