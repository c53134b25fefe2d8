"""What is checked before round 1: model, machine, folders, and the clients' data together."""

import os
import shutil
import zipfile
from collections.abc import Callable
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
from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.data.summary import DataSummary, form_problems
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint

TASKS = "expected one of detect, segment, pose, obb, classify"
TEXTS = (
    "its classes come from text prompts (YOLO-World, YOLOE), which are not trained here; use a "
    "model that has its own, e.g. yolo11n.yaml"
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """The data.yaml of two sound clients; tests only read them."""
    folder = tmp_path_factory.mktemp("sites")
    return {
        name: recipes.make_dataset(folder / name, num_train=2, num_val=1, seed=seed)
        for seed, name in enumerate(("north", "south"))
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    return recipes.make_checkpoint(tmp_path_factory.mktemp("model") / "base.pt")


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
        ("yolo26n-sem.yaml", f"task 'semantic'; {TASKS}"),
        ("yolo26n-depth.yaml", f"task 'depth'; {TASKS}"),
        ("yolov8s-world.yaml", TEXTS),
        ("yoloe-11s-seg.yaml", TEXTS),
        ("yolov8n-clss.yaml", "no such file, and no model of that name comes with Ultralytics"),
    ],
)
def test_a_base_model_that_cannot_be_used_is_refused(
    tmp_path: Path, sites: Sites, base_model: str, expected: str
) -> None:
    problems = problems_of(config_of(tmp_path, sites, base_model=base_model))
    assert problems == [f"base_model '{base_model}': {expected}"]


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path, sites: Sites) -> None:
    from ultralytics.nn.tasks import SemanticSegmentationModel

    path = tmp_path / "semantic.pt"
    torch.save({"model": SemanticSegmentationModel("yolo26n-sem.yaml", verbose=False)}, path)
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    assert problem == f"base_model '{path}': task 'semantic'; {TASKS}"


def test_a_checkpoint_whose_classes_are_texts_is_refused(tmp_path: Path, sites: Sites) -> None:
    from ultralytics.nn.tasks import WorldModel

    path = tmp_path / "world.pt"
    torch.save({"model": WorldModel("yolov8n-worldv2.yaml", verbose=False)}, path)
    (problem,) = problems_of(config_of(tmp_path, sites, base_model=str(path)))
    assert problem == f"base_model '{path}': {TEXTS}"


def test_a_classifier_refuses_what_is_about_boxes_and_data_without_folders(
    tmp_path: Path, sites: Sites
) -> None:
    folder = recipes.make_class_folders(tmp_path / "folder")
    datasets = [
        {"name": "folder", "data": str(folder), "not_annotated": ["a"]},
        {"name": "yaml", "data": str(sites["north"])},
    ]
    config = config_of(
        tmp_path,
        sites,
        base_model="yolov8n-cls.yaml",
        datasets=datasets,
        train={"single_cls": True, "classes": [0]},
    )
    assert problems_of(config) == [
        "datasets[0] 'folder': not_annotated: an image of one class says that it is of no other, "
        "so a classifier has nothing to leave out; remove it",
        "train.single_cls: a classifier of one class learns nothing; remove it",
        "train.classes: Ultralytics takes all classes of a classifier's data; remove it, and the "
        "folders of the others",
        f"datasets[1] 'yaml' ({sites['north']}): a file; expected a folder with train/CLASS/*.jpg "
        "and val/CLASS/*.jpg, as a classifier's data is",
    ]


def test_a_classifier_shares_a_part_that_it_has(tmp_path: Path, sites: Sites) -> None:
    config = config_of(
        tmp_path,
        sites,
        base_model="yolov8n-cls.yaml",
        datasets=[{"name": "a", "data": str(recipes.make_class_folders(tmp_path / "folder"))}],
        shared={"parts": ["neck"]},
    )
    (problem,) = problems_of(config)
    assert problem == "shared.parts: [neck] of this model has no arrays to share; add a part"


def test_a_classifiers_images_have_ultralytics_size(tmp_path: Path, sites: Sites) -> None:
    datasets = [{"name": "a", "data": str(recipes.make_class_folders(tmp_path / "folder"))}]
    config = config_of(tmp_path, sites, base_model="yolov8n-cls.yaml", datasets=datasets, train={})
    with checked(config) as federation:
        assert federation.config.train["imgsz"] == 224


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


# Images of a split


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"imgsz": 32}, "found 1 train image, but at imgsz 32 BatchNorm"),
        ({"imgsz": 320, "multi_scale": 0.9}, "found 1 train image, but at imgsz 32 BatchNorm"),
        ({"imgsz": 32, "batch": 1}, "train.batch: found 1, but at imgsz 32 BatchNorm"),
        ({"imgsz": 64, "batch": 1}, ""),
        ({"imgsz": 320, "multi_scale": 0.5}, ""),
    ],
)
def test_batches_of_one_tiny_image_are_refused_before_round_1(
    tmp_path: Path, sites: Sites, train: dict[str, Any], expected: str
) -> None:
    one = recipes.make_dataset(tmp_path / "one", num_train=1, num_val=1)
    config = config_of(tmp_path, {**sites, "one": one}, train=train)
    if not expected:
        with checked(config):
            return
    (problem,) = problems_of(config)
    assert expected in problem
    assert "multi_scale that keep every size at least 64" in problem
    if "batch" not in train:
        assert problem.startswith("datasets[2] 'one': ")


def test_a_fraction_that_leaves_one_tiny_image_is_refused(tmp_path: Path, sites: Sites) -> None:
    lines = problems_of(config_of(tmp_path, sites, train={"imgsz": 32, "fraction": 0.5}))
    assert [line.partition(":")[0] for line in lines] == [
        "datasets[0] 'north'",
        "datasets[1] 'south'",
    ]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1, (6, 4, 2)),
        (0.5, (3, 4, 2)),
        (5, (5, 4, 2)),
        ([0.5, 0.5], (3, 2, 2)),
        ([1, 1, 0], (6, 4, 0)),
        ([2, 3, 0.5], (2, 3, 1)),
    ],
)
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_images_are_counted_after_fraction(
    tmp_path: Path, task: str, fraction: Any, expected: tuple[int, int, int]
) -> None:
    data = recipes.make_data(tmp_path / "data", task, num_train=6, num_val=4)
    other = recipes.make_data(tmp_path / "other", task, num_train=2, num_val=2)
    if task == "classify":
        (tmp_path / "other" / "val").rename(tmp_path / "data" / "test")
    else:
        data.write_text(f"{data.read_text()}test: {other.parent}/images/val\n")
    base = "yolov8n.yaml" if task == "detect" else "yolov8n-cls.yaml"
    train = {"imgsz": 64, "fraction": fraction}
    config = config_of(
        tmp_path, {"data": data}, base_model=base, train=train, evaluate={"data": str(data)}
    )
    with checked(config) as federation:
        found = federation.summaries["data"]
        assert (found.num_train, found.num_val, found.num_test) == expected
        assert federation.server_data is not None
        assert ("test" in federation.server_data) == bool(expected[2])
        assert not found.test_is_unlabelled


# Train arguments of which only a model, a trainer or a machine tells that they are wrong


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (1000, "found 1000, but the model has layers 0 to 22, of which nothing is left to train"),
        (23, "found 23, but the model has layers 0 to 22, of which nothing is left to train"),
        (list(range(23)), "of which nothing is left to train; freeze fewer"),
        ([0, 1000], "found [0, 1000], but the model has layers 0 to 22, and no 1000; correct it"),
        (["22.cv9"], "found ['22.cv9'], but the model has layers 0 to 22, and no '22.cv9'"),
        (["23.cv2"], "found ['23.cv2'], but the model has layers 0 to 22, and no '23.cv2'"),
        (22, ""),
        ([10, "22.cv2", "5", "0.bn"], ""),  # layer 10 has no arrays
    ],
)
def test_layers_to_freeze_have_to_be_there_and_to_leave_some(
    tmp_path: Path, sites: Sites, freeze: Any, expected: str
) -> None:
    config = config_of(tmp_path, sites, train={"imgsz": 64, "freeze": freeze})
    if not expected:
        with checked(config):
            return
    (problem,) = problems_of(config)
    assert problem.startswith("train.freeze: found ")
    assert expected in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
@pytest.mark.parametrize("amp", ["bf16", "BF16"])
def test_bfloat16_on_a_cpu_is_refused(tmp_path: Path, sites: Sites, amp: str) -> None:
    (problem,) = problems_of(config_of(tmp_path, sites, train={"imgsz": 64, "amp": amp}))
    assert problem.startswith("train.amp: found bf16, which needs a GPU, and clients train on the")


def test_what_only_a_trainer_refuses_is_refused_before_round_1(
    tmp_path: Path,
) -> None:
    """Ultralytics draws masks at imgsz / mask_ratio pixels when it reads its first batch."""
    data = recipes.make_data(tmp_path / "data", "segment", num_train=2, num_val=1)
    train = {"imgsz": 64, "mask_ratio": 100}
    config = config_of(tmp_path, {"data": data}, base_model="yolov8n-seg.yaml", train=train)
    num_threads = torch.get_num_threads()
    (problem,) = problems_of(config)
    assert problem.startswith(
        "train: training cannot be set up with these arguments for datasets[0] 'data': ValueError: "
        "mask_ratio=100 downsamples"
    )
    assert torch.get_num_threads() == num_threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_classifiers_crops_have_one_scale(tmp_path: Path) -> None:
    data = recipes.make_data(tmp_path / "data", "classify")
    config = config_of(
        tmp_path, {"data": data}, base_model="yolov8n-cls.yaml", train={"scale": [0.5, 1.5]}
    )
    (problem,) = problems_of(config)
    assert problem.startswith("train.scale: found [0.5, 1.5], expected one number")


# What train.classes leaves


def write_labels(data: Path, split: str, *labels: str) -> None:
    """The label files of a split of `make_dataset`, one after the other."""
    for number, label in enumerate(labels):
        (data.parent / "labels" / split / f"{number}.txt").write_text(label)


ONE, TWO = "0 .5 .5 .4 .4\n", "1 .5 .5 .4 .4\n"


def sites_of_classes(folder: Path) -> tuple[Path, Path]:
    """`west` has the classes a and b on all images, `east` in another order, and b alone."""
    west = recipes.make_dataset(folder / "west", num_train=2, num_val=2, names=("a", "b"))
    east = recipes.make_dataset(folder / "east", num_train=2, num_val=2, names=("b", "a"))
    for split in ("train", "val"):
        write_labels(west, split, ONE + TWO, ONE + TWO)
        write_labels(east, split, ONE, ONE)
    return west, east


@pytest.mark.parametrize("classes", [0, [0]])
@pytest.mark.parametrize("single_cls", [False, True])
def test_splits_without_a_label_of_the_selected_classes_are_refused(
    tmp_path: Path, classes: Any, single_cls: bool
) -> None:
    """They would score 0 in each round, and lower the mean that chooses best.pt."""
    west, east = sites_of_classes(tmp_path)
    train = {"imgsz": 64, "classes": classes, "single_cls": single_cls}
    config = config_of(
        tmp_path, {"west": west, "east": east}, train=train, evaluate={"data": str(east)}
    )
    reason = "no label is of [a], the classes that train.classes leaves; do without this data set"
    assert problems_of(config) == [
        f"{where}: {reason}, or label some"
        for where in (
            "datasets[1] 'east': train",
            "datasets[1] 'east': val",
            "evaluate.data: val",
        )
    ]
    for split in ("train", "val"):
        write_labels(east, split, ONE, TWO)  # the index of a there is 1
    with checked(config):
        pass


def test_a_test_split_without_a_label_of_the_selected_classes_is_left_alone(
    tmp_path: Path,
) -> None:
    west, east = sites_of_classes(tmp_path)
    for data in (west, east):
        data.write_text(f"{data.read_text()}test: {east.parent}/images/test\n")
    shutil.copytree(east.parent / "images" / "val", east.parent / "images" / "test")
    shutil.copytree(east.parent / "labels" / "val", east.parent / "labels" / "test")
    west.write_text(west.read_text().replace("[a, b]", "[b, a]"))  # its names go by its own order
    train = {"imgsz": 64, "classes": [1]}
    config = config_of(
        tmp_path, {"west": west}, train=train, names=["b", "a"], evaluate={"data": str(west)}
    )
    with checked(config) as federation:
        summary = federation.summaries["west"]
        assert (summary.num_test, summary.test_is_unlabelled) == (0, True)
        assert federation.server_data is not None
        assert "test" not in federation.server_data
    everything = config.model_copy(update={"train": {"imgsz": 64}})
    with checked(everything) as federation:
        assert federation.summaries["west"].num_test == 2
