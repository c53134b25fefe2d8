"""Base models and pretrained weights that are refused before round 1."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
import torch
from recipes import Touch
from sound_configs import Sites, config_of, problems_of

from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import InputError

TASKS = "expected one of detect, segment, pose, obb, classify"


TEXTS = (
    "its classes come from text prompts (YOLO-World, YOLOE), which are not trained here; use a "
    "model that has its own, e.g. yolo11n.yaml"
)


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
