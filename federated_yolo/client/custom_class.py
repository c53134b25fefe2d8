"""A user's own client class, named in the config as FILE.py:CLASS."""

import importlib.util
import inspect
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from federated_yolo.client.yolo_client import YoloClient
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.text import reason_of

ROOT = Path(__file__).resolve().parents[2]


@lru_cache
def client_class(name: str) -> type[YoloClient]:
    """Return the class that does the clients' work.

    name: A subclass of YoloClient as FILE.py:CLASS, relative to the project's folder, which is
    sent to SuperNodes; empty for YoloClient itself. Raises InputError if it cannot be loaded.
    """
    if not name:
        return YoloClient
    file, _, class_name = name.rpartition(":")
    path = ROOT / file
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"client: found '{name}', expected FILE.py:CLASS, with a file in the working directory "
            f"or {ROOT}, and a subclass of federated_yolo.YoloClient in it"
        )
    found = vars(_module_of(path))
    classes = {n: v for n, v in found.items() if isinstance(v, type) and issubclass(v, YoloClient)}
    if class_name not in classes:
        own = ", ".join(sorted(set(classes) - {"YoloClient"})) or "none"
        raise InputError(
            f"client: '{class_name}' is not a subclass of YoloClient in {path} (there: {own})"
            f"{nearest(class_name, classes)}"
        )
    _check_hooks(classes[class_name], path)
    return classes[class_name]


def _check_hooks(found: type[YoloClient], path: Path) -> None:
    """Raise InputError if a hook cannot take the arguments that it will be called with."""
    for hook in ("prepare", "train", "evaluate", "finish"):
        expected = inspect.signature(getattr(YoloClient, hook))
        try:
            inspect.signature(getattr(found, hook)).bind(*expected.parameters)
        except TypeError as error:
            raise InputError(
                f"client: {path}: {found.__name__}.{hook}: {error}; expected "
                f"{hook}({', '.join(expected.parameters)})"
            ) from error


def _module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"client_of_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise InputError(f"client: {path}: {reason_of(error)}; correct it") from error
    return module
