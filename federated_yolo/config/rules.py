"""Rules between settings, which the type of a single setting cannot express."""

from collections.abc import Mapping
from typing import Any

from federated_yolo.config.schema import CLIENT_NAME, Config, name_client
from federated_yolo.config.train_arguments import train_problems


def config_problems(config: Config) -> list[str]:
    """Describe what `load_config` would refuse in a config that was created without it."""
    return setting_problems(config.model_dump()) + site_problems(config)


def setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """Describe what is wrong with train arguments, client names and the choice of a batch size."""
    problems = []
    train = settings.get("train")
    if isinstance(train, dict):
        problems += train_problems(train)
        if train.get("batch") is not None and settings.get("global_batch") is not None:
            problems.append(
                "train.batch and global_batch: found both; give global_batch for all "
                "clients of a round together, or train.batch for each of them"
            )
    return problems + client_name_problems(settings.get("datasets"))


def client_name_problems(datasets: Any) -> list[str]:
    """Describe client names that are not usable as folder names or repeated (case is ignored).

    datasets: The setting as read; entries that are not clients are reported elsewhere.
    """
    problems = []
    first: dict[str, int] = {}
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        client = name_client(entry)
        if not (isinstance(client, dict) and isinstance(client.get("name"), str | int | float)):
            continue
        name = str(client["name"])
        where = f"datasets[{index}] '{name}'"
        if not CLIENT_NAME.fullmatch(name):
            problems.append(
                f"{where}: not usable as a folder name; give it a name of letters, digits, '.', "
                f"'_' and '-', e.g. {{name: client_{index}, data: {client.get('data')}}}"
            )
        other = first.setdefault(name.casefold(), index)
        if other != index:
            problems.append(
                f"{where}: the same name as datasets[{other}]; give each client its own, e.g. "
                f"{{name: {name}_{index}, data: {client.get('data')}}}"
            )
    return problems


def site_problems(config: Config) -> list[str]:
    """Describe settings that do not suit SuperNodes, or that only suit SuperNodes."""
    problems = []
    if not config.has_sites:
        if config.new_clients:
            problems.append("new_clients: only SuperNodes can join a run; remove it")
        return problems
    if config.ray.address is not None:
        problems.append("ray.address: for simulations; SuperNodes use no Ray; remove it")
    for index, data in enumerate(config.clients):
        where = f"datasets[{index}] '{data.name}'"
        if data.data is not None:
            problems.append(
                f"{where}: has a data.yaml, and others have none; give every client one (a "
                "simulation), or none (SuperNodes, which know where their data is)"
            )
        elif data.show_images or data.not_annotated:
            problems.append(
                f"{where}: show_images and not_annotated are the SuperNode's to say, in its "
                "--node-config; remove them"
            )
    return problems
