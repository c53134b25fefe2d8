"""A run that is stopped anywhere and resumed ends as if nothing had happened."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import assert_same, make_dataset, outcome
from trainings import TRAIN, federation

from federated_yolo.common.errors import InputError
from federated_yolo.storage.run_dir import RunDir

SETTINGS: dict[str, dict[str, Any]] = {
    "adaptive server, moving average": {"strategy": "fedadam", "server_ema": 0.5},
    "server momentum, a part of the clients": {"strategy": "fedavgm", "fraction_train": 0.6},
    "personal models": {"shared": {"batchnorm": "local"}, "evaluate": {"every": 2}},
    "what changed, in few bytes": {"codec": "topk", "strategy": "fedavgm", "fraction_train": 0.6},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


class Writes:
    """Counts files that are put in place, and kills the process at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, float("inf")
        original, original_unlink = Path.replace, Path.unlink

        def replace(path: Path, target: Path) -> Path:
            self.count += 1
            if self.count > self.last:
                raise Killed
            return original(path, target)

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if self.count > self.last:  # a killed process cleans nothing up
                raise Killed
            original_unlink(path, missing_ok)

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "unlink", unlink)

    @contextmanager
    def allowed(self, number: float) -> Iterator[None]:
        self.count, self.last = 0, number
        yield
        self.last = float("inf")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sites")
    return [
        make_dataset(folder / f"c{i}", num_train=4 + 2 * i, num_val=2, seed=i) for i in range(3)
    ]


def start(sites: list[Path], folder: Path, *, resume: bool = False, **settings: Any) -> None:
    train = {**TRAIN, "mosaic": 1.0, "close_mosaic": 1}
    federation(sites, folder, train, resume=resume, **{"evaluate": {"every": 1}, **settings})


def killed_after(writes: Writes, number: int, sites: list[Path], folder: Path, **how: Any) -> bool:
    """Whether the run was killed; if so, nobody holds its directory any more."""
    try:
        with writes.allowed(number):
            start(sites, folder, **how)
    except Killed:
        writes.last = float("inf")
    else:
        return False
    gc.collect()
    return True


def without_traffic(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome without the bytes that were sent."""
    return {
        name: [{k: v for k, v in row.items() if not k.endswith("_bytes")} for row in value]
        if name.endswith(".csv")
        else value
        for name, value in found.items()
    }


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_run_killed_at_any_write_and_resumed_gives_the_same(
    settings: dict[str, Any], sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    with writes.allowed(float("inf")):
        start(sites, tmp_path / "whole", **settings)
    expected, number = outcome(tmp_path / "whole" / "run"), writes.count
    assert number > 30
    rng = np.random.default_rng(list(SETTINGS.values()).index(settings))
    for trial, moment in enumerate(rng.choice(np.arange(1, number), size=2, replace=False)):
        folder = tmp_path / f"killed{trial}"
        assert killed_after(writes, int(moment), sites, folder, **settings)
        again = int(rng.integers(1, 12))
        killed_after(writes, again, sites, folder, resume=True, **settings)
        start(sites, folder, resume=True, **settings)
        found = outcome(folder / "run")
        if "codec" in settings:  # what is sent to a client depends on what it has been sent before
            found, expected = without_traffic(found), without_traffic(expected)
        assert_same(found, expected)
        assert not list((folder / "run").rglob("*.tmp"))


def test_a_run_that_is_still_going_on_cannot_be_resumed(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "run")
    with pytest.raises(InputError, match="another process is at work on this run"):
        RunDir.reopen(run_dir.path)


DAMAGE = {
    "a round cut off": ("weights/round2.npz", lambda p: p.write_bytes(p.read_bytes()[:99999])),
    "a round that is gone": ("weights/round2.npz", Path.unlink),
    "the strategy's memory is gone": ("server/strategy2.npz", Path.unlink),
    "no moving average": ("weights/ema2.npz", Path.unlink),
    "a row is gone": (
        "results.csv",
        lambda p: p.write_text("".join(p.read_text().splitlines(keepends=True)[::2])),
    ),
    "a client's state is gone": (
        "clients/c0/state/round2.pt",
        lambda p: [state.unlink() for state in p.parent.iterdir()],
    ),
    "what a client's updates left out is gone": (
        "clients/c0/state/residual2.npz",
        lambda p: [state.unlink() for state in p.parent.glob("residual*")],
    ),
    "what downloads go on from is gone": ("server/downloads2.npz", Path.unlink),
    "rounds with privacy, then none": ("server/privacy.json", lambda p: p.write_text("{}")),
    "a table of something else": ("clients.csv", lambda p: p.write_text("a,b\n1,2\n")),
}


@pytest.fixture(scope="module")
def two_rounds(
    sites: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The directory of a run of one client, made once with a codec and once without."""

    @cache
    def made(codec: str) -> tuple[Path, dict[str, Any]]:
        settings: dict[str, Any] = {"strategy": "fedadam", "num_rounds": 2, "codec": codec}
        settings |= {"server_ema": 0.5} if codec == "none" else {}
        folder = tmp_path_factory.mktemp(codec)
        start(sites[:1], folder, **settings)
        return folder / "run", settings

    return made


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_run_directory_is_refused_by_the_file(
    name: str, damage: Any, sites: list[Path], two_rounds: Any, tmp_path: Path
) -> None:
    run_dir, settings = two_rounds("topk" if "residual" in name or "downloads" in name else "none")
    path = shutil.copytree(run_dir, tmp_path / "run") / name
    damage(path)
    with pytest.raises(InputError, match=f"{name}: "):
        start(sites[:1], tmp_path, resume=True, **settings)


def test_another_base_model_than_the_runs_is_refused(sites: list[Path], tmp_path: Path) -> None:
    start(sites[:1], tmp_path, num_rounds=1)
    with pytest.raises(InputError, match=r"round0\.npz: the run began from other weights"):
        start(sites[:1], tmp_path, resume=True, num_rounds=1, seed=1)
