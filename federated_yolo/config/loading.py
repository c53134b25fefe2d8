"""Reads a YAML file and key=value overrides into a `Config`, or reports a line per problem."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from federated_yolo.common.command_line import shipped_config
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.files import read_yaml_text
from federated_yolo.config.rules import setting_problems, site_problems
from federated_yolo.config.schema import (
    ClientData,
    ClientResources,
    CodecConfig,
    Config,
    EvaluateConfig,
    FrozenModel,
    PersonaliseConfig,
    PrivacyConfig,
    RayConfig,
    SharedConfig,
    UpdateNormConfig,
    by_name,
)
from federated_yolo.config.train_arguments import NOT_TRAIN_ARGS, OWNED_TRAIN_ARGS

# Settings that are text, whichever type YAML gives them: 0123 is a name, not 83. `*` stands for
# each entry of a list.
TEXTS = ("base_model", "save_dir", "name", "client", "evaluate.data", "ray.address")
TEXTS += ("datasets.*", "datasets.*.name", "datasets.*.data")
# Class names are read as Ultralytics reads a data.yaml: yes becomes 'True', and 01 becomes '1'.
CLASS_NAMES = ("names.*", "datasets.*.not_annotated.*")


def trusts_checkpoint(path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether `trust_checkpoint` is on; read before Ultralytics is imported, unlike the rest."""
    return read_config(path, overrides)[0].get("trust_checkpoint") is True


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides (dots reach nested keys) and validate.

    `${vars.x}` in the file stands for an entry of its free-form mapping `vars`.

    Raises InputError with every problem found.
    """
    try:
        return _load_config(path, overrides)
    except InputError as error:
        raise InputError(map(_with_example, error.problems)) from error


def _with_example(problem: str) -> str:
    """Say where configs/example.yaml is, if this is no clone of the project."""
    example = shipped_config("example.yaml")
    place = "configs/example.yaml" if example.parent == Path("configs").resolve() else str(example)
    found = r"\b(copy|as in|see) configs/example\.yaml"
    return re.sub(found, lambda match: f"{match[1]} {place}", problem)


def _load_config(path: Path, overrides: Sequence[str]) -> Config:
    settings, problems = read_config(path, overrides)
    if problems:
        raise InputError(problems)
    if "datasets" not in settings and {"val", "names"} <= set(settings):
        raise InputError(
            f"{path}: this is a data set (a data.yaml), expected a config that names it under "
            "'datasets'; copy configs/example.yaml and adapt it"
        )
    settings.pop("vars", None)
    config = None
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        problems = _explain(path, error.errors())
    problems += [f"{path}: {line}" for line in setting_problems(settings)]
    if config is not None:
        problems += [f"{path}: {line}" for line in site_problems(config)]
    if problems or config is None:
        raise InputError(problems)
    return config


def read_config(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a file and overrides, not yet validated, and the problems in them."""
    try:
        source = read_yaml_text(path)
        loaded = OmegaConf.load(io.StringIO(source))
        # The same file with all values as written, and as Ultralytics reads class names.
        texts = OmegaConf.create(yaml.load(source, _AsWritten) or {})
        names = OmegaConf.create(yaml.load(source, _AsClassNames) or {})
    except FileNotFoundError:
        return {}, [f"{path}: no such file; copy configs/example.yaml and adapt it"]
    except Exception as error:  # YAML's constructors of numbers, dates, ... raise any error
        return {}, [f"{path}: not a readable YAML file: {_one_line(error)}"]
    if not isinstance(loaded, DictConfig):
        return {}, [f"{path}: found a list, expected 'key: value' lines as in configs/example.yaml"]
    assert isinstance(texts, DictConfig)
    assert isinstance(names, DictConfig)
    problems = list(_override(path, overrides, (loaded, texts, names)))
    if problems:
        return {}, problems
    try:
        settings, texts, names = (
            _with_text_keys(OmegaConf.to_container(tree, resolve=True))
            for tree in (loaded, texts, names)
        )
        for pattern in TEXTS:
            settings = _with_texts(settings, texts, pattern.split("."))
        # Also text, except for null, true and false.
        settings = _with_texts(settings, texts, ["train", "pretrained"], kept=(NoneType, bool))
        for pattern in CLASS_NAMES:
            settings = _with_texts(settings, names, pattern.split("."), kept=())
    except InterpolationKeyError as error:
        return {}, [f"{path}: {_one_line(error)}; add it below 'vars', or give it as vars.NAME=..."]
    except OmegaConfBaseException as error:
        return {}, [f"{path}: {_one_line(error)}"]
    # A section whose lines are all commented out is None and gets its defaults.
    return {key: value for key, value in settings.items() if value is not None}, []


def _override(
    path: Path, overrides: Sequence[str], trees: tuple[DictConfig, DictConfig, DictConfig]
) -> Iterator[str]:
    """Apply overrides to the trees; yield a line for each override that is not usable.

    trees: The file's settings as YAML, as text, and as class names.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip(" ."):
            yield f"'{override}': expected key=value, e.g. num_rounds=5"
            continue
        if not value.strip():
            yield f"'{override}': no value; write {key}=null for the default"
            continue
        try:
            for tree, found in zip(trees, _values_of(value), strict=True):
                _name_sections(tree)
                OmegaConf.update(tree, key, found)
        except (YAMLError, OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
            yield f"'{override}': not usable with {path}: {_one_line(error)}"


class _AsWritten(yaml.SafeLoader):
    """YAML loader that reads all values as text; only `<<` keeps its meaning."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012


class _AsClassNames(yaml.SafeLoader):
    """YAML loader that reads all values as Ultralytics reads class names: YAML 1.1, then str()."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the text of a value or key; PyYAML calls this for each."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            return str(super().construct_object(node, deep))
        except ValueError:  # such as a date that does not exist
            return node.value


def _values_of(text: str) -> tuple[Any, Any, Any]:
    """Read a value of the command line as YAML, as text, and as class names. Raises YAMLError.

    Without brackets or quotes, all but numbers, true, false and null is text exactly as written,
    including `#` and `: `.
    """
    text = text.strip()
    is_text = text[0] not in "[{'\""
    found: Any = text
    try:
        read = OmegaConf.from_dotlist([f"value={text}"])
        found = OmegaConf.to_container(read, resolve=False)["value"]  # pyright: ignore
    except YAMLError:
        if not is_text:
            raise
    if is_text:
        return found if isinstance(found, int | float | None) else text, text, text
    return found, yaml.load(text, _AsWritten), yaml.load(text, _AsClassNames)


def _with_texts(
    value: Any, texts: Any, pattern: Sequence[str], *, kept: tuple[type, ...] = (NoneType,)
) -> Any:
    """Replace values by their texts at the places of the pattern. kept: Types that stay."""
    if not pattern:
        is_kept = not isinstance(texts, str) or isinstance(value, kept)
        return value if is_kept else texts
    key, *rest = pattern
    if key == "*":
        if not isinstance(value, list) or not isinstance(texts, list):
            return value
        pairs = zip(value, texts, strict=True)
        return [_with_texts(v, t, rest, kept=kept) for v, t in pairs]
    if not isinstance(value, dict) or not isinstance(texts, dict) or key not in value:
        return value
    return {**value, key: _with_texts(value[key], texts[key], rest, kept=kept)}


def _name_sections(settings: DictConfig) -> None:
    """Write `strategy: NAME` as `strategy: {name: NAME}`, so that overrides add options to it."""
    unresolved = OmegaConf.to_container(settings, resolve=False)
    assert isinstance(unresolved, dict)
    for section in ("strategy", "codec"):
        if isinstance(unresolved.get(section), str):
            settings[section] = by_name(unresolved[section])


def _with_text_keys(value: Any) -> Any:
    """Convert all keys to text: YAML also allows numbers, which are not names of settings."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(entry) for key, entry in value.items()}
    return value


# unstable: omegaconf._utils says 'full_key: $FULL_KEY'
def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).split(" full_key:")[0]


def _explain(path: Path, errors: Iterable[Any]) -> list[str]:
    """Return one line for each setting that Pydantic refused."""
    lines: dict[str, str] = {}
    for error in errors:
        first, *rest = error["loc"]
        parts = [first, *(part for part in rest if not _is_branch(part))]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
        if error["type"] == "extra_forbidden":
            section = _SECTIONS.get(str(parts[0]), Config) if len(parts) > 1 else Config
            text = f"unknown setting{_nearest_setting(str(parts[-1]), section)}"
        elif error["type"] == "missing":
            text = "missing; see configs/example.yaml"
        else:
            message = error["msg"].removeprefix("Input should be ").split(", unable")[0]
            name = next(part for part in reversed(parts) if not isinstance(part, int))
            last = "dataset" if name == "datasets" and name != parts[-1] else str(name)
            expected = _EXPECTED.get(where, _EXPECTED.get(last, message))
            text = f"found {error['input']!r}, expected {expected}"
        lines.setdefault(where, f"{path}: {where}: {text}")  # a union reports every branch
    if any(where.startswith("datasets[") for where in lines):
        lines.pop("datasets", None)  # the branch 'demo' was not meant
    return list(lines.values())


def _nearest_setting(name: str, section: type[FrozenModel]) -> str:
    """Return a hint at the intended name; at the top level also at a train argument."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    if section is Config:
        if name in OWNED_TRAIN_ARGS:
            return f"; {OWNED_TRAIN_ARGS[name]}"
        if name in DEFAULT_CFG_DICT and name not in NOT_TRAIN_ARGS:
            return f"; did you mean 'train.{name}'?"
    return nearest(name, section.model_fields)


def _is_branch(part: Any) -> bool:
    """Whether this part of an error's path is Pydantic's name for a branch of a union."""
    return isinstance(part, str) and any(mark in part for mark in "[(-")


_EXPECTED = {
    "dataset": "the path of a data.yaml (of a folder to classify), or {name: ..., data: ...}",
    "datasets": "'demo', 'supernodes' or a list of data.yaml paths, one for each client",
    "not_annotated": "a list of class names",
    "show_images": "a whole number of images, from 0 to 16",
    "cross_client": "true or false",
    "names": "a list of class names",
    "averages_per_round": "a whole number from 1 to 1000, or auto",
    "patience": "a whole number of rounds, or null for all",
    "shared": "'parts: ...' and 'batchnorm: ...' lines",
    "parts": "a list of 'backbone', 'neck' and 'head'",
    "fraction_train": "a number greater than 0 and at most 1",
    "server_ema": "a number from 0 (none) to less than 1",
    "num_gpus": "a number of at least 0 (a fraction shares a GPU) or 'auto'",
    "num_cpus": "a number greater than 0",
    "round_timeout_s": "seconds, more than 0 and at most a year, or null for no limit",
    "update_norm": "'outliers: ...' and 'times_median: ...' lines",
    "times_median": "a number greater than 1",
    "weights": "images or equal",
    "max_share": "a number from 0.000001 to 1, e.g. 0.4, or null for no limit",
    "max_statistics_factor": "a number greater than 1, or .inf for no limit",
    "privacy": "'mode: ...', 'clipping_norm: ...', ... lines, as in configs/example.yaml",
    "clipping_norm": "a number greater than 0",
    "noise_multiplier": "a number greater than 0",
    "delta": "a number greater than 0 and less than 1, e.g. 0.00001",
    "secure_aggregation": "true or false",
    "name": "letters, digits, '.', '_' and '-'",
    "train": "Ultralytics train arguments, one 'key: value' line each",
    "client_resources": "'num_cpus: ...' and 'num_gpus: ...' lines",
    "ray": "an 'address: ...' line",
    "address": "HOST:PORT of a Ray cluster, 'auto' for this machine's, or null for none",
    "evaluate": "'data: ...', 'every: ...', ... lines, as in configs/example.yaml",
    "personalise": "'epochs: ...' and 'lr0: ...' lines",
    "personalise.epochs": "a whole number of epochs, from 0 (none) to 10000",
    "personalise.lr0": "a number greater than 0 and at most 1, or null for that of the rounds",
    "strategy": "a name, or 'name: ...' and its options",
    "codec": "none, float16, int8 or topk, or 'name: topk' and 'fraction: ...' lines",
    "codec.name": "none, float16, int8 or topk",
    "codec.fraction": "a number greater than 0 and at most 1",
    "loggers": "a list of tensorboard, wandb and mlflow ([] for none), or 'settings'",
}
_SECTIONS = {
    "codec": CodecConfig,
    "client_resources": ClientResources,
    "ray": RayConfig,
    "evaluate": EvaluateConfig,
    "personalise": PersonaliseConfig,
    "datasets": ClientData,
    "shared": SharedConfig,
    "update_norm": UpdateNormConfig,
    "privacy": PrivacyConfig,
}
