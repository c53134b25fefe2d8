"""Which settings may change when a run is resumed, and which of its own must be confirmed."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yaml import YAMLError

from federated_yolo.common.files import read_yaml
from federated_yolo.config.loading import read_config

# Settings that may change on resume: the rounds' weights do not depend on them, except that another
# number of threads rounds differently.
RESUME_SETTINGS = (
    "client",
    "client_resources",
    "loggers",
    "max_statistics_factor",
    "min_clients",
    "patience",
    "personalise",
    "ray",
    "round_timeout_s",
    "trust_checkpoint",
    "verbose",
)
REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(\$\{[^}\n]{0,40})")  # a reference of OmegaConf
NETWORK_LOGGERS = ("wandb", "mlflow")


def resume_problems(overrides: Sequence[str]) -> list[str]:
    """Describe overrides that would turn a resumed run into a different run."""
    return [
        f"'{override}': a resumed run keeps its settings, except {', '.join(RESUME_SETTINGS)}; "
        "leave it out, or start a new run from weights/last.pt as base_model"
        for override in overrides
        if override.partition("=")[0].partition(".")[0].strip() not in RESUME_SETTINGS
    ]


def said_again(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings that must be confirmed on resume: they run code or connect elsewhere.

    A run directory may come from somebody else, so its args.yaml is not trusted.
    Returns the override (key=value) by setting, for those settings that are in use.
    """
    client, loggers = settings.get("client"), settings.get("loggers")
    ray = settings.get("ray")
    address = ray.get("address") if isinstance(ray, Mapping) else ray
    found = {}
    if settings.get("trust_checkpoint") not in (None, False):
        found["trust_checkpoint"] = "trust_checkpoint=true"
    if client is not None:
        found["client"] = f"client={client}"
    if address is not None:
        found["ray.address"] = f"ray.address={address}"
    names = [loggers] if isinstance(loggers, str) else loggers or ()
    if any(name in (*NETWORK_LOGGERS, "settings") for name in names):
        found["loggers"] = f"loggers=[{','.join(map(str, names))}]"
    return found


def words_said_again(path: Path) -> list[str]:
    """Return the overrides from `said_again` for a run's args.yaml."""
    return list(said_again(read_config(path, ())[0]).values())


def trust_problems(path: Path, overrides: Sequence[str]) -> list[str]:
    """Describe settings from `said_again` in a run's args.yaml that overrides do not confirm.

    path: Path of the args.yaml.
    """
    try:
        reference = next(_references(read_yaml(path)), None)
    except (OSError, ValueError, YAMLError):  # `read_config` reports it
        reference = None
    if reference:  # it can expand to more than memory holds
        return [
            f"{path}: found the reference {reference}, which no run writes; put there what it "
            "stands for"
        ]
    settings, problems = read_config(path, ())
    given = {override.partition("=")[0].strip() for override in overrides}
    return problems + [
        f"{path}: {setting}: found {word.partition('=')[2]}, which would {WHAT_IT_DOES[setting]}; "
        f"for a resumed run only the command line decides this: add {shlex.quote(word)} if "
        f"you trust whoever made it, or {setting}={WITHOUT.get(setting, 'null')}"
        for setting, word in said_again(settings).items()
        if not {setting, setting.partition(".")[0]} & given
    ]


WHAT_IT_DOES = {
    "trust_checkpoint": "run what code its base model and checkpoints hold",
    "client": "run that file",
    "ray.address": "hand the work to the machines there",
    "loggers": "send its numbers there",
}
WITHOUT = {"trust_checkpoint": "false", "loggers": "[]"}


def _references(value: Any) -> Iterator[str]:
    """Yield each start of a text that OmegaConf would replace by another setting."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _references(key)
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)
    elif isinstance(value, str):
        yield from REFERENCE.findall(value)
