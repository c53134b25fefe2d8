"""What a config file and overrides come to; text in them stays text."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import MINIMAL, load
from processes import ROOT
from pydantic import BaseModel, ValidationError
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import YAML

from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.schema import ClientData, Config

EXAMPLE = ROOT / "configs" / "example.yaml"


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
