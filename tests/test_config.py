"""Settings: what a file and overrides come to, and what is said about each that is wrong."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import YAML

from federated_yolo.cli import parse
from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.schema import ClientData, Config
from federated_yolo.config.train_arguments import OWNED_TRAIN_ARGS

EXAMPLE = Path(__file__).parent.parent / "configs" / "example.yaml"
MINIMAL = "base_model: yolo11n.pt\ndatasets: [north/data.yaml, south/data.yaml]\n"


def load(folder: Path, text: str, *overrides: str) -> Config:
    """Write `text` to a config file and load it."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the InputError that loading `text` raises, without the path of the file."""
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    for line in caught.value.problems:
        assert "\n" not in line
        assert "\x1b" not in line
    return [line.removeprefix(f"{folder / 'config.yaml'}: ") for line in caught.value.problems]


# What a config comes to


def test_a_minimal_config_has_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.clients == [
        ClientData(name="north", data="north/data.yaml"),
        ClientData(name="south", data="south/data.yaml"),
    ]
    assert (config.num_rounds, config.local_epochs, config.num_epochs) == (10, 1, 10)
    assert (config.strategy.name, config.strategy.options) == ("fedavg", {})
    assert (config.save_dir, config.name, config.seed) == ("runs/federated", "train", 0)
    assert (config.client_resources.num_cpus, config.client_resources.num_gpus) == (1, "auto")
    assert (config.evaluate.data, config.evaluate.every) == (None, 1)
    assert config.train == {}


def test_the_schedule_spans_all_rounds(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL + "num_rounds: 4\nlocal_epochs: 3").num_epochs == 12


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(tmp_path, MINIMAL).num_rounds = 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sites/north/data.yaml", "north"),
        ("sites/north/dataset.yaml", "north"),
        ("sites/north.yaml", "north"),
        ("data.yaml", "data"),
    ],
)
def test_a_bare_path_names_its_client(tmp_path: Path, path: str, name: str) -> None:
    config = load(tmp_path, f"base_model: m.pt\ndatasets: [{path}]")
    assert config.clients == [ClientData(name=name, data=path)]


def test_a_number_can_be_a_name(tmp_path: Path) -> None:
    text = "base_model: m.pt\nname: 2024\ndatasets: [{name: 7, data: a.yaml}]"
    config = load(tmp_path, text)
    assert (config.name, config.clients[0].name) == ("2024", "7")
    assert load(tmp_path, text, "name=2025").name == "2025"


def test_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    text = MINIMAL + "train:\n  # imgsz: 320\nevaluate:\nstrategy:\nclient_resources:\n"
    assert load(tmp_path, text) == load(tmp_path, MINIMAL)


def test_vars_are_put_in_place_and_are_no_setting(tmp_path: Path) -> None:
    text = """
vars: {root: /data, size: 320}
base_model: ${vars.root}/base.pt
datasets: ["${vars.root}/north/data.yaml"]
train: {imgsz: "${vars.size}"}
"""
    config = load(tmp_path, text)
    assert config.base_model == "/data/base.pt"
    assert config.clients[0].data == "/data/north/data.yaml"
    assert config.train == {"imgsz": 320}
    assert load(tmp_path, text, "vars.root=/other").base_model == "/other/base.pt"


@pytest.mark.parametrize(
    ("override", "setting", "value"),
    [
        ("num_rounds=3", "num_rounds", 3),
        ("evaluate.every=5", "evaluate.every", 5),
        ("client_resources.num_gpus=0.5", "client_resources.num_gpus", 0.5),
        ("train.lrf=1e-3", "train.lrf", 0.001),
        ("train.cos_lr=true", "train.cos_lr", True),
        ("train.classes=[0,2]", "train.classes", [0, 2]),
        ("train={imgsz: 320}", "train.imgsz", 320),
        ("base_model=dir/a b.pt", "base_model", "dir/a b.pt"),
        ("base_model='a=b.pt'", "base_model", "a=b.pt"),
        ("strategy=fedavg", "strategy.name", "fedavg"),
        ("codec=int8", "codec.name", "int8"),
        ("codec={name: topk, fraction: 0.05}", "codec.fraction", 0.05),
        ("verbose=true", "verbose", True),
        (
            "datasets=[x.yaml]",
            "datasets",
            [{"name": "x", "data": "x.yaml", "not_annotated": (), "show_images": 0}],
        ),
        ("datasets.1.data=x.yaml", "datasets.1.data", "x.yaml"),
        ("datasets[1].data=x.yaml", "datasets.1.data", "x.yaml"),
        ("datasets=demo", "datasets", "demo"),
        ("evaluate.data=null", "evaluate.data", None),
    ],
)
def test_an_override_replaces_a_setting(
    tmp_path: Path, override: str, setting: str, value: object
) -> None:
    text = """
base_model: m.pt
datasets: [{name: a, data: a.yaml}, {name: b, data: b.yaml}]
strategy: {name: fedadam, eta: 0.1}
evaluate: {data: server.yaml}
train: {batch: 8}
"""
    config: Any = load(tmp_path, text, override).model_dump()
    for key in setting.split("."):
        config = config[int(key) if isinstance(config, list) else key]
    assert config == value
    assert type(config) is type(value)


def test_an_override_leaves_its_neighbours(tmp_path: Path) -> None:
    text = MINIMAL + "train: {batch: 8, imgsz: 320}"
    assert load(tmp_path, text, "train.batch=4").train == {"batch": 4, "imgsz": 320}


def test_later_overrides_win(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL, "num_rounds=2", "num_rounds=3").num_rounds == 3


def test_an_option_joins_a_strategy_given_by_its_bare_name(tmp_path: Path) -> None:
    strategy = load(tmp_path, MINIMAL + "strategy: fedadam", "strategy.eta=0.1").strategy
    assert (strategy.name, strategy.options) == ("fedadam", {"eta": 0.1})
    strategy = load(tmp_path, MINIMAL, "strategy=fedyogi", "strategy.tau=2").strategy
    assert (strategy.name, strategy.options) == ("fedyogi", {"tau": 2})


def test_another_strategy_drops_the_options_of_the_one_before(tmp_path: Path) -> None:
    text = MINIMAL + "strategy: {name: fedadam, eta: 0.1}"
    assert load(tmp_path, text, "strategy=fedavg").strategy.options == {}


def test_the_written_config_loads_again_to_an_equal_one(tmp_path: Path) -> None:
    text = """
base_model: "dir: with #signs/m.pt"
datasets: [{name: "007", data: "1e3"}, {name: "on", data: "null"}, {name: n, data: "it's"}]
name: "1.10"
strategy: {name: fedadam, eta: 1.0e-08, names: ["yes", 1, 2.0]}
client_resources: {num_gpus: 0.25}
train: {lr0: 1e-5, classes: [0, 2], cos_lr: true, freeze: null, optimizer: AdamW, scale: 0.5}
evaluate: {data: ä.yaml, every: 0}
"""
    config = load(tmp_path, text)
    again = load(tmp_path, config.to_yaml())
    assert again == config
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize("name", ["${x}", "a ${", "${oc.env:HOME}", "$x"])
def test_what_looks_like_a_reference_survives_being_written(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, "base_model: m.pt\ndatasets: [d.yaml]\n")
    config = config.model_copy(update={"names": (name, "b")})
    assert load(tmp_path, config.to_yaml()).names == (name, "b")


def test_the_example_loads_and_shows_every_setting() -> None:
    config = load_config(EXAMPLE)
    settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert settings.keys() == Config.model_fields.keys()
    for name in ("client_resources", "evaluate", "strategy"):
        section = getattr(config, name)
        assert isinstance(section, BaseModel)
        assert settings[name].keys() == type(section).model_fields.keys()
    assert len(config.clients) == 2


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    example = load_config(EXAMPLE).model_dump(exclude={"base_model", "datasets", "train"})
    assert example == load(tmp_path, MINIMAL).model_dump(
        exclude={"base_model", "datasets", "train"}
    )


# What is said about a file that cannot be read


def test_a_missing_file_points_to_the_example(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file; copy configs/example\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a readable YAML file: .*Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04\xff\xfe\x80")
    with pytest.raises(InputError, match=r"weights\.pt: not a readable YAML file: "):
        load_config(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_rounds: [1", "not a readable YAML file: .*line 1, column 13"),
        ("name: a: b", "not a readable YAML file: mapping values are not allowed.*line 1"),
        ("seed: 1\nseed: 2", "not a readable YAML file: .*found duplicate key seed.*line 2"),
        ("- 1\n- 2", "found a list, expected 'key: value' lines as in configs/example.yaml"),
        ("5", "not a readable YAML file"),
        ("x: ${vars.x", "not a readable YAML file: .*vars"),
        ("x: ${vars.size}", "'vars.size' not found; add it below 'vars', or give it as vars.NAME="),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "num_rounds: 3"])
def test_what_must_be_there_is_named(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text) == [
        "base_model: missing; see configs/example.yaml",
        "datasets: missing; see configs/example.yaml",
    ]


# What is said about a setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_round: 3", "num_round: unknown setting; did you mean 'num_rounds'?"),
        ("Seed: 3", "Seed: unknown setting; did you mean 'seed'?"),
        ("lr0: 0.1", "lr0: unknown setting; did you mean 'train.lr0'?"),
        (
            "epochs: 4",
            "epochs: unknown setting; use num_rounds and local_epochs; the schedule spans "
            "num_rounds * local_epochs",
        ),
        ("train: {epoch: 4}", "train.epoch: unknown Ultralytics argument; did you mean 'epochs'?"),
        ("colour: red", "colour: unknown setting"),
        ("1: 2", "1: unknown setting"),
        ("evaluate: {evry: 2}", "evaluate.evry: unknown setting; did you mean 'every'?"),
        (
            "client_resources: {num_cpu: 1}",
            "client_resources.num_cpu: unknown setting; did you mean 'num_cpus'?",
        ),
        ("num_rounds: -1", "num_rounds: found -1, expected greater than or equal to 1"),
        ("num_rounds: 0", "num_rounds: found 0, expected greater than or equal to 1"),
        ("num_rounds: 2.5", "num_rounds: found 2.5, expected a valid integer"),
        ("num_rounds: many", "num_rounds: found 'many', expected a valid integer"),
        ("num_rounds: true", "num_rounds: found True, expected a valid integer"),
        ("local_epochs: '2'", "local_epochs: found '2', expected a valid integer"),
        ("seed: -1", "seed: found -1, expected greater than or equal to 0"),
        ("seed: 2147483648", "seed: found 2147483648, expected less than 2147483648"),
        ("verbose: perhaps", "verbose: found 'perhaps', expected a valid boolean"),
        ("evaluate: {every: -1}", "evaluate.every: found -1, expected greater than or equal to 0"),
        (
            "evaluate: x.yaml",
            "evaluate: found 'x.yaml', expected 'data: ...', 'every: ...', ... lines, as in "
            "configs/example.yaml",
        ),
        (
            "client_resources: {num_cpus: 0}",
            "client_resources.num_cpus: found 0, expected a number greater than 0",
        ),
        (
            "client_resources: {num_cpus: .nan}",
            "client_resources.num_cpus: found nan, expected a number greater than 0",
        ),
        (
            "client_resources: {num_gpus: all}",
            "client_resources.num_gpus: found 'all', expected a number of at least 0 (a fraction "
            "shares a GPU) or 'auto'",
        ),
        ("codec: zip", "codec.name: found 'zip', expected none, float16, int8 or topk"),
        (
            "codec: {name: topk, fraction: 0}",
            "codec.fraction: found 0, expected a number greater than 0 and at most 1",
        ),
        ("codec: {topk: 0.1}", "codec.topk: unknown setting"),
        ("strategy: [a]", "strategy: found ['a'], expected a name, or 'name: ...' and its options"),
        (
            "train: [1]",
            "train: found [1], expected Ultralytics train arguments, one 'key: value' line each",
        ),
        ("name: ../up", "name: found '../up', expected letters, digits, '.', '_' and '-'"),
        ("name: a b", "name: found 'a b', expected letters, digits, '.', '_' and '-'"),
        ("name: ''", "name: found '', expected letters, digits, '.', '_' and '-'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_right(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert problems_of(tmp_path, MINIMAL + text) == [expected]


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        (
            "[]",
            "datasets: found [], expected 'demo', 'supernodes' or a list of data.yaml paths",
        ),
        ("demos", "datasets: found 'demos', expected 'demo', 'supernodes' or a list of data.yaml"),
        (
            "[[3]]",
            "datasets[0]: found [3], expected the path of a data.yaml (of a folder to classify), "
            "or {name: ..., data: ...}",
        ),
        (
            "[a.yaml, null]",
            "datasets[1]: found None, expected the path of a data.yaml (of a folder to classify)",
        ),
        (
            "[{name: a}, {name: b, data: c}]",
            "datasets[1] 'b': has a data.yaml, and others have none; give every client one (a ",
        ),
        (
            "[{name: a, show_images: 2}]",
            "datasets[0] 'a': show_images and not_annotated are the SuperNode's to say, in its ",
        ),
        ("[{name: a, data: b, dat: c}]", "datasets[0].dat: unknown setting; did you mean 'data'?"),
        ("[{name: a, data: [b]}]", "datasets[0].data: found ['b'], expected a valid string"),
        (
            "[{name: north, data: a}, {name: south, data: b}, {name: north, data: c}]",
            "datasets[2] 'north': the same name as datasets[0]; give each client its own, e.g. "
            "{name: north_2, data: c}",
        ),
        ("[a/data.yaml, A/data.yaml]", "datasets[1] 'A': the same name as datasets[0]; give each "),
        ("[{name: 1, data: a}, {name: 1, data: b}]", "datasets[1] '1': the same name as datasets"),
        (
            "[{name: ../up, data: a.yaml}]",
            "datasets[0] '../up': not usable as a folder name; give it a name of letters, digits, "
            "'.', '_' and '-', e.g. {name: client_0, data: a.yaml}",
        ),
        ("[{name: '', data: a}]", "datasets[0] '': not usable as a folder name; "),
        ("[{name: .hidden, data: a}]", "datasets[0] '.hidden': not usable as a folder name; "),
        ("[{name: a/b, data: a}]", "datasets[0] 'a/b': not usable as a folder name; "),
        ("[{name: 'a\\b', data: a}]", "datasets[0] 'a\\b': not usable as a folder name; "),
        ("[my site/data.yaml]", "datasets[0] 'my site': not usable as a folder name; "),
        ("[../data.yaml]", "datasets[0] '..': not usable as a folder name; "),
    ],
)
def test_a_wrong_client_is_named_with_what_is_right(
    tmp_path: Path, datasets: str, expected: str
) -> None:
    (problem,) = problems_of(tmp_path, f"base_model: m.pt\ndatasets: {datasets}")
    assert problem.startswith(expected)


@pytest.mark.parametrize("argument", sorted(OWNED_TRAIN_ARGS))
def test_a_train_argument_of_the_federation_is_refused_with_the_reason(
    tmp_path: Path, argument: str
) -> None:
    (problem,) = problems_of(tmp_path, MINIMAL + f"train: {{{argument}: 1}}")
    expected = f"train.{argument}: set by the federation; {OWNED_TRAIN_ARGS[argument]}"
    assert problem == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lrO: 0.1", "lrO: unknown Ultralytics argument; did you mean 'lrf'?"),
        ("image_size: 320", "image_size: unknown Ultralytics argument"),
        ("1: 2", "1: unknown Ultralytics argument"),
        ("source: x.jpg", "source: not a train argument; remove it"),
        ("lr0: fast", "lr0: 'lr0=fast' is of invalid type str."),
        ("lr0: 2", "lr0: 'lr0=2' is an invalid value. Valid 'lr0' values are between 0.0 and 1.0."),
        ("momentum: null", "momentum: 'momentum=None' is invalid."),
        ("lr0: 0.1", "lr0: has no effect with optimizer auto, which chooses it; set train.optim"),
        ("box: .nan", "box: found nan, expected a finite number"),
        ("freeze: -1", "freeze: found -1, expected a number of layers, or a list of layers"),
        (
            "freeze: 22.cv2",
            "freeze: found '22.cv2', expected a number of layers, or a list of layer",
        ),
        ("freeze: true", "freeze: found True, expected a number of layers, or a list of layers"),
        ("freeze: ['']", "freeze: found [''], expected a number of layers, or a list of layers"),
        ("auto_augment: foo", "auto_augment: found 'foo', expected randaugment, autoaugment, augm"),
        ("auto_augment: none", "auto_augment: found 'none', expected randaugment, autoaugment, au"),
        ("freeze: [1.5]", "freeze: found [1.5], expected a number of layers, or a list of layers"),
        ("cos_lr: 1", "cos_lr: 'cos_lr=1' is of invalid type int."),
        ("nbs: 0", "nbs: 'nbs=0' is an invalid value."),
        (
            "batch: -1",
            "batch: found -1, expected a whole number of images, from 1 to 65536; AutoBatch "
            "(batch=-1) would give every client another batch size",
        ),
        ("batch: 0.7", "batch: found 0.7, expected a whole number of images, from 1 to 65536; "),
        ("batch: true", "batch: found True, expected a whole number of images, from 1 to 65536; "),
        ("imgsz: [320, 640]", "imgsz: found [320, 640], expected a whole number of pixels, at le"),
        ("imgsz: -320", "imgsz: found -320, expected a whole number of pixels, at least 32"),
        ("cache: disk", "cache: found 'disk', expected ram or false; 'disk' would write into the "),
        ("cache: DISK", "cache: found 'DISK', expected ram or false; 'disk' would write into the "),
        ("cache: rom", "cache: found 'rom', expected ram or false; "),
        ("workers: -1", "workers: found -1, expected a whole number from 0 to 1024"),
        ("optimizer: SDG", "optimizer: found 'SDG', expected auto, SGD, MuSGD, Adam, "),
        ("pretrained: [5]", "pretrained: found [5], expected true, false or the path of a .pt"),
        ("classes: cat", "classes: found 'cat', expected class indices, e.g. [0, 2]"),
        ("freeze: all", "freeze: found 'all', expected a number of layers, or a list of layers"),
        ("copy_paste_mode: x", "copy_paste_mode: found 'x', expected flip or mixup"),
    ],
)
def test_a_wrong_train_argument_is_named_with_what_is_right(
    tmp_path: Path, text: str, expected: str
) -> None:
    (problem,) = problems_of(tmp_path, MINIMAL + f"train: {{{text}}}")
    assert problem.startswith(f"train.{expected}")


@pytest.mark.parametrize(
    "argument",
    """batch=1 imgsz=32 workers=0 cache=false cache=true cache=ram cache=null optimizer=auto
    optimizer=adamw optimizer=MuSGD pretrained=true pretrained=x.pt classes=0 classes=[0,1]
    classes=null freeze=10 freeze=[0,1] freeze=null freeze=[22.cv2,1]
    auto_augment=null auto_augment=augmix copy_paste_mode=mixup fraction=0.5
    close_mosaic=0 amp=bf16""".split(),
)
def test_a_right_train_argument_passes(tmp_path: Path, argument: str) -> None:
    assert len(load(tmp_path, MINIMAL, f"train.{argument}").train) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("num_rounds", "'num_rounds': expected key=value, e.g. num_rounds=5"),
        ("=5", "'=5': expected key=value, e.g. num_rounds=5"),
        ("num_rounds=[1", r"'num_rounds=\[1': not usable with .*config\.yaml: .*line 1"),
        ("datasets.7.data=x", "'datasets.7.data=x': not usable with .*: list index out of range"),
        ("num_rounds=few", "num_rounds: found 'few', expected a valid integer"),
        ("num_roundz=5", "num_roundz: unknown setting; did you mean 'num_rounds'?"),
        ("train.epochs=5", "train.epochs: set by the federation; use num_rounds and local_epochs"),
        (
            "base_model=${vars.x}",
            "'vars.x' not found; add it below 'vars', or give it as vars.NAME",
        ),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load(tmp_path, MINIMAL, override)


def test_all_problems_of_a_config_are_reported_at_once(tmp_path: Path) -> None:
    text = """
base_modle: m.pt
datasets: [{name: a, data: x}, {name: A, data: y}, {name: b b, data: z}]
num_rounds: -1
evaluate: {every: often}
train: {epochs: 5, lr: 0.1, batch: -1}
"""
    starts = [
        "base_model: missing",
        "num_rounds: found -1",
        "evaluate.every: found 'often'",
        "base_modle: unknown setting; did you mean 'base_model'?",
        "train.epochs: set by the federation",
        "train.lr: unknown Ultralytics argument",
        "train.batch: found -1",
        "datasets[1] 'A': the same name",
        "datasets[2] 'b b': not usable as a folder name",
    ]
    problems = problems_of(tmp_path, text)
    assert len(problems) == len(starts)
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_every_wrong_override_is_reported(tmp_path: Path) -> None:
    assert len(problems_of(tmp_path, MINIMAL, "num_rounds", "seed=[1", "name=x")) == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("num-rounds=3", r"num-rounds: unknown setting; did you mean 'num_rounds'\?"),
        ("num_rounds=", r"'num_rounds=': no value; write num_rounds=null for the default"),
        (".=5", r"'.=5': expected key=value"),
        ("shared.part=[head]", r"shared.part: unknown setting; did you mean 'parts'\?"),
        ("shared.parts=[heads]", r"expected a list of 'backbone', 'neck' and 'head'"),
        ("shared.batchnorm=no", r"shared.batchnorm: found .*'average', 'local' or 'frozen'"),
        ("fraction_train=0", r"fraction_train: found 0, expected a number greater than 0"),
        ("server_ema=1", r"server_ema: found 1, expected a number from 0"),
        ("local_optimizer=drop", r"local_optimizer: found 'drop', expected 'keep' or 'reset'"),
        ("global_batch=0", r"global_batch: found 0"),
    ],
)
def test_an_override_that_fits_nothing_is_explained(
    tmp_path: Path, override: str, expected: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(InputError, match=expected):
        load_config(path, [override])


def test_a_batch_for_each_client_and_for_all_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "train: {batch: 4}\n")
    with pytest.raises(InputError, match=r"train\.batch and global_batch: found both"):
        load_config(path, ["global_batch=16"])


def test_a_wrong_entry_of_a_list_is_explained_by_its_own_list(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load(tmp_path, f"{MINIMAL}shared: {{parts: [tail]}}\n")
    assert len(raised.value.problems) == 2
    for line in raised.value.problems:
        assert line.endswith("expected a list of 'backbone', 'neck' and 'head'")


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


# Text stays text


TEXT = """
base_model: 0123
datasets:
  - {name: 2024_01, data: 12:30}
  - 2024_02
name: 0123
save_dir: 1_000
client: 1e3
evaluate: {data: 0x10}
"""


def test_text_in_a_file_is_not_taken_for_a_number(tmp_path: Path) -> None:
    config = load(tmp_path, TEXT)
    assert (config.base_model, config.name, config.save_dir) == ("0123", "0123", "1_000")
    assert config.clients == [
        ClientData(name="2024_01", data="12:30"),
        ClientData(name="2024_02", data="2024_02"),
    ]
    assert (config.client, config.evaluate.data) == ("1e3", "0x10")
    assert load(tmp_path, config.to_yaml()) == config


@pytest.mark.parametrize(
    "text",
    [
        "0123",
        "2024_01_02",
        "12:30",
        "yes",
        "1e3",
        "1_0.5",
        "2024-01-02",
        "off",
        "0b1",
        ".5",
        "01:02",
    ],
)
@pytest.mark.parametrize("setting", ["save_dir", "base_model", "evaluate.data", "client"])
def test_text_on_the_command_line_is_not_taken_for_a_number(
    tmp_path: Path, setting: str, text: str
) -> None:
    config: Any = load(tmp_path, MINIMAL, f"{setting}={text}")
    found = config.model_dump()
    for key in setting.split("."):
        found = found[key]
    assert found == text
    assert load(tmp_path, config.to_yaml()) == config


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("DIR/run #1", "DIR/run #1"),
        (" a: b ", "a: b"),
        ("@home", "@home"),
        ("%x", "%x"),
        ("a, b", "a, b"),
        ("'0123 #4'", "0123 #4"),
        ('"a\\tb"', "a\tb"),
        ("d\\tir", "d\\tir"),
        ("é😀", "é😀"),
    ],
)
def test_text_on_the_command_line_stands_as_it_is(
    tmp_path: Path, value: str, expected: str
) -> None:
    config = load(tmp_path, MINIMAL, f"save_dir={value}", f"train.pretrained={value}")
    assert config.save_dir == expected
    assert config.train["pretrained"] == expected


def test_text_in_variables_stays_text(tmp_path: Path) -> None:
    text = MINIMAL + "vars: {day: 2024_01}\nname: run-${vars.day}\nsave_dir: ${vars.day}"
    config = load(tmp_path, text)
    assert (config.name, config.save_dir) == ("run-2024_01", "2024_01")
    assert load(tmp_path, text, "vars.day=012").save_dir == "012"


def test_text_of_a_list_entry_can_be_overridden(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "datasets.0.name=0123", "datasets=[{name: 01, data: 02}]")
    assert config.clients == [ClientData(name="01", data="02")]


def test_null_is_still_the_default(tmp_path: Path) -> None:
    text = MINIMAL + "client: null\nevaluate: {data: ~}\nnames: null\nsave_dir:"
    assert load(tmp_path, text) == load(tmp_path, MINIMAL)
    assert load(tmp_path, text, "save_dir=null", "evaluate.data=null").save_dir == "runs/federated"


CLASSES = '[yes, No, on, 1.0, 01, 1e3, 0x1F, 1:30, 2024-01-02, null, ~, "yes", "01", .inf, 2_0]'


def test_class_names_are_those_that_ultralytics_reads_in_a_data_yaml(tmp_path: Path) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(f"names: {CLASSES}")
    raw: Any = YAML.load(str(data))
    expected = list(check_class_names(raw["names"]).values())
    assert expected[:5] == ["True", "False", "True", "1.0", "1"]
    client = f"{{name: a, data: d.yaml, not_annotated: {CLASSES}}}"
    config = load(tmp_path, f"base_model: m.pt\ndatasets: [{client}]\nnames: {CLASSES}")
    assert list(config.names or ()) == expected
    assert list(config.clients[0].not_annotated) == expected
    assert load(tmp_path, MINIMAL, f"names={CLASSES}").names == config.names
    assert load(tmp_path, config.to_yaml()) == config


def test_the_home_folder_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = """
base_model: ~/base.pt
datasets: [~/north/data.yaml, {name: south, data: ~/south/data.yaml}]
save_dir: ~/runs
evaluate: {data: ~/server.yaml}
client: ~/client.py:Mine
train: {pretrained: ~/other.pt}
"""
    config = load(tmp_path, text)
    paths = [config.base_model, config.save_dir, config.evaluate.data, config.client]
    paths += [config.train["pretrained"], *(client.data for client in config.clients)]
    assert all(str(path).startswith("/home/me/") for path in paths)
    assert [client.name for client in config.clients] == ["north", "south"]
    # A user without a home, and a name that only begins so.
    assert load(tmp_path, MINIMAL, "save_dir=~nobody-here/x").save_dir == "~nobody-here/x"
    assert load(tmp_path, MINIMAL, "save_dir=a~/x").save_dir == "a~/x"


def test_a_data_yaml_in_the_place_of_a_config_is_told_as_such(tmp_path: Path) -> None:
    text = "path: .\ntrain: images/train\nval: images/val\nnames: [a]\n"
    with pytest.raises(InputError, match="this is a data set") as error:
        load(tmp_path, text)
    assert len(error.value.problems) == 1
