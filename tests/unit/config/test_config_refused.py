"""What is said about a file, a setting or an override that is wrong."""

from pathlib import Path

import pytest
from config_files import MINIMAL, load, problems_of

from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.train_arguments import OWNED_TRAIN_ARGS


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
        *(
            (
                f"averages_per_round: {value}",
                f"averages_per_round: found {shown}, expected a whole number from 1 to 1000, or "
                "auto",
            )
            for value, shown in (("0", "0"), ("2.5", "2.5"), ("often", "'often'"), ("1001", "1001"))
        ),
        ("patience: -1", "patience: found -1, expected a whole number of rounds, or null for all"),
        (
            "patience: 2.5",
            "patience: found 2.5, expected a whole number of rounds, or null for all",
        ),
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
        ("personalise=5", r"personalise: found 5, expected 'epochs: ...' and 'lr0: ...' lines"),
        ("personalise.epochs=-1", r"epochs: found -1, expected a whole number of epochs, from 0"),
        ("personalise.lr0=0", r"personalise.lr0: found 0, expected a number greater than 0"),
        ("personalise.epoch=1", r"personalise.epoch: unknown setting; did you mean 'epochs'?"),
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


def test_the_example_is_named_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "none.yaml")
    example = caught.value.problems[0].partition("copy ")[2].partition(" and adapt")[0]
    assert Path(example).is_file()
