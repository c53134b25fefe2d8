"""Exports of annotation tools in a config are made into Ultralytics data sets before they are read.

They lie in save_dir, as the data of the demo does, so that runs, resumed runs and workers on other
machines find them under one path.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from federated_yolo.common.errors import InputError
from federated_yolo.common.text import listed
from federated_yolo.config.schema import Config
from federated_yolo.data.exports.convert import Options, prepare
from federated_yolo.data.exports.made import Made
from federated_yolo.storage.run_dir import SERVER

FOLDER = "converted"  # below save_dir


@dataclass(frozen=True)
class PreparedData:
    """A config whose data sets are such that Ultralytics reads them, as far as that is possible.

    Attributes:
        config: The config with the data sets that were made in place of exports.
        made: What was made, by name of the client, or "(server)".
        problems: What is wrong, by name of the client, or "(server)", whose data is left as it is.
    """

    config: Config
    made: Mapping[str, Made]
    problems: Mapping[str, tuple[str, ...]]


def prepare_data(config: Config, task: str) -> PreparedData:
    """Make Ultralytics data sets of the exports that a config names.

    task: Ultralytics' task, of which the labels have to be.
    """
    made: dict[str, Made] = {}
    problems: dict[str, tuple[str, ...]] = {}
    folder = Path(config.save_dir) / FOLDER

    def prepared(path: str, name: str, where: str, *, needs_train: bool) -> str:
        options = Options(task, config.val_fraction, config.seed, needs_train=needs_train)
        try:
            found = prepare(Path(path), folder, name.strip("()"), options, where=where)
        except InputError as error:
            problems[name] = tuple(error.problems)
            return path
        except OSError as error:
            problems[name] = (
                f"{where}: its data cannot be prepared in save_dir '{config.save_dir}': {error}",
            )
            return path
        if found.made:
            made[name] = found.made
        return str(found.path) if found.path != Path(path) else path

    clients = [
        client
        if client.data is None
        else client.model_copy(
            update={
                "data": prepared(
                    client.data,
                    client.name,
                    f"datasets[{index}] '{client.name}'",
                    needs_train=True,
                )
            }
        )
        for index, client in enumerate(config.clients)
    ]
    update: dict[str, object] = {} if config.datasets == "supernodes" else {"datasets": clients}
    if (held_out := config.evaluate.data) is not None:
        path = prepared(held_out, SERVER, "evaluate.data", needs_train=False)
        update["evaluate"] = config.evaluate.model_copy(update={"data": path})
    return PreparedData(config.model_copy(update=update), made, problems)


def made_table(made: Mapping[str, Made]) -> Table:
    """What was made of each export: its images, objects by class, and what was left out."""
    table = Table(title="Made of exports", title_justify="left", box=SIMPLE_HEAD)
    for column in ("data", "format", "images", "objects", "left out"):
        table.add_column(column, overflow="fold")
    for name, found in made.items():
        table.add_row(*(Text(cell) for cell in _cells(name, found)))
    return table


def _cells(name: str, made: Made) -> Iterator[str]:
    yield name
    yield made.format
    yield listed(made.images)
    yield listed(made.num_objects)
    yield "; ".join(f"{listed(counts)}: {reason}" for reason, counts in made.left_out.items())


def made_notes(made: Mapping[str, Made]) -> Iterable[str]:
    """What a user should know of what was made, one line each."""
    return [f"{name}: {note}" for name, found in made.items() for note in found.notes]
