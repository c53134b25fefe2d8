"""Data that changes while a run goes on: each round trains and scores on what is there now."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from changing_data import (
    SMALL,
    Change,
    Changes,
    ChangingGrid,
    Stopped,
    add,
    in_turn,
    put_back,
    replace,
    stop,
    take,
)
from processes import federated
from recipes import assert_same, file_digests, make_class_folders, make_dataset, outcome
from sites import node_config
from sound_configs import write_config
from trainings import TRAIN, Silent, federation

from federated_yolo.client import workspace as client_module
from federated_yolo.server.results import RunResult
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo import trainer as trainer_module


def run(
    data: Path | list[Path],
    folder: Path,
    changes: Changes,
    *,
    forgetful: bool = False,
    display: Silent | None = None,
    train: dict[str, Any] = SMALL,
    **settings: Any,
) -> RunResult:
    datasets = data if isinstance(data, list) else [data]
    grid = ChangingGrid(len(datasets), changes, forgetful=forgetful)
    return federation(datasets, folder, train, grid=grid, display=display, **settings)


def rows_of(folder: Path, client: str = "c0") -> dict[int, tuple[str, str]]:
    """Number of images and note of each round in clients.csv."""
    rows = read_csv(folder / "run" / "clients.csv")
    return {
        int(row["round"]): (row["num_examples"], row.get("note", ""))
        for row in rows
        if row["client"] == client
    }


# The mosaic buffer has all 8 images after round 1.
def every_change(data: Path) -> Changes:
    return {
        ("train", 2): take(data, "0", "3", "7"),
        ("train", 3): in_turn(put_back(data), add(data, "new", "newer")),
        ("train", 4): replace(data, "5"),
    }


CHANGES_TOLD = {
    1: ("8", ""),
    2: ("5", "its train split has 5 images now, 8 before"),
    3: (
        "8",  # the server's cap
        "it has 10 images now; it counts with the 8 of its start; "
        "its train split has 10 images now, 5 before",
    ),
    4: (
        "8",
        "it has 10 images now; it counts with the 8 of its start; "
        "its train split has changed, and has 10 images as before",
    ),
}


@pytest.fixture(scope="module")
def changed_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run in one process gives while its data changes in every way."""
    folder = tmp_path_factory.mktemp("changed")
    data = make_dataset(folder / "data", num_train=8)
    result = run(data, folder / "runs", every_change(data), num_rounds=4)
    assert rows_of(folder / "runs") == CHANGES_TOLD
    return outcome(result.run_dir)


def test_each_round_trains_on_the_images_of_now_and_tells_their_number(
    changed_run: dict[str, Any],
) -> None:
    # The 5 steps for 10 images count for as many as those for the 8 of its start.
    assert [row["num_steps"] for row in changed_run["clients.csv"]] == ["4", "3", "4", "4"]
    assert changed_run["results.csv"][1]["num_examples"] == "5"


def test_the_result_is_the_same_when_every_message_goes_to_a_new_process(
    changed_run: dict[str, Any], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", num_train=8)
    changes = every_change(data)
    result = run(data, tmp_path / "runs", changes, num_rounds=4, forgetful=True)
    assert_same(outcome(result.run_dir), changed_run)


@pytest.mark.parametrize("stopped_in", [2, 3])
def test_the_result_is_the_same_when_the_run_is_resumed_around_a_change(
    stopped_in: int, changed_run: dict[str, Any], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", num_train=8)
    changes = every_change(data)
    first = {key: change for key, change in changes.items() if key[1] < stopped_in}
    first["train", stopped_in] = in_turn(changes["train", stopped_in], stop)
    with pytest.raises(Stopped):
        run(data, tmp_path / "runs", first, num_rounds=4)
    client_module.held_clients.clear()
    rest = {key: change for key, change in changes.items() if key[1] > stopped_in}
    result = run(data, tmp_path / "runs", rest, num_rounds=4, resume=True)
    assert_same(outcome(result.run_dir), changed_run)


def test_data_that_stays_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(tmp_path / "data", num_train=4)
    made = []
    original = trainer_module.make_trainer
    monkeypatch.setattr(
        trainer_module, "make_trainer", lambda s: made.append(original(s)) or made[-1]
    )
    run(data, tmp_path / "runs", {}, evaluate={"every": 1})
    # Another one was set up to check the settings, before round 1.
    kept = [t for t in made if tmp_path / "runs" in t.settings.private_dir.parents]
    assert len(kept) == 1
    client = next(reversed(client_module.held_clients.values()))
    loader = client.evaluator._loaders["val"]
    assert client.evaluator.loader(client.model, "val") is loader
    take(data, "0", split="val")()
    assert len(client.evaluator.loader(client.model, "val").dataset) == 2


@pytest.mark.parametrize("settings", [{"cache": "ram"}, {"rect": True}, {"fraction": 0.5}])
def test_images_of_other_shapes_and_numbers_fit_what_is_kept_of_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", num_train=6)
    changes: Changes = {("train", 2): in_turn(replace(data, "1"), take(data, "0", "5"))}
    found = []
    for forgetful in (False, True):
        folder = tmp_path / f"runs{forgetful}"
        train = {**SMALL, **settings}
        result = run(data, folder, changes, forgetful=forgetful, train=train, num_rounds=2)
        assert rows_of(folder)[2][0] == ("2" if "fraction" in settings else "4")
        found.append(outcome(result.run_dir))
        shutil.rmtree(data.parent)
        make_dataset(data.parent, num_train=6)
    assert_same(*found)


def test_a_client_with_one_image_trains_and_one_with_none_waits_until_it_has_some(
    tmp_path: Path,
) -> None:
    data = make_dataset(tmp_path / "data", num_train=4)
    other = make_dataset(tmp_path / "other", num_train=2, seed=1)
    display = Silent()
    changes = {
        ("train", 2): take(data, "1", "2", "3"),
        ("train", 3): take(data, "0"),
        ("train", 4): put_back(data),
    }
    run([data, other], tmp_path / "runs", changes, display=display, num_rounds=4)
    rows = rows_of(tmp_path / "runs")
    assert rows[2] == ("1", "its train split has 1 image now, 4 before")
    assert rows[3][0] == ""
    assert "train: No images found in" in rows[3][1]
    assert "expected at least one image" in rows[3][1]
    assert rows[4] == ("4", "its train split has 4 images now, 1 before")
    assert [name for name, _ in display.failures] == ["c0"]
    assert {row[0] for row in rows_of(tmp_path / "runs", "c1").values()} == {"2"}


def test_a_single_image_that_cannot_be_trained_is_told_with_the_number_of_images(
    tmp_path: Path,
) -> None:
    data = make_dataset(tmp_path / "data", num_train=4)
    other = make_dataset(tmp_path / "other", num_train=2, seed=1)
    changes = {("train", 2): take(data, "1", "2", "3"), ("train", 3): put_back(data)}
    run([data, other], tmp_path / "runs", changes, train=TRAIN)
    rows = rows_of(tmp_path / "runs")
    assert rows[2][0] == ""
    assert "train: with its 1 images of now: " in rows[2][1]
    assert rows[3] == ("4", "")  # as in its last round


def unlabel(data: Path) -> None:
    for path in (data.parent / "labels" / "train").iterdir():
        path.write_text("")


def without_label_files(data: Path) -> None:
    shutil.rmtree(data.parent / "labels" / "train")


def damage(data: Path, *names: str, split: str = "train") -> Change:
    return lambda: [
        (data.parent / "images" / split / f"{name}.jpg").write_bytes(b"no image") for name in names
    ]


def rename(old: Path, new: Path) -> Change:
    return lambda: old.rename(new)


def write(path: Path, text: str) -> Change:
    return lambda: path.write_text(text)


YAML = "train: images/train\nval: images/val\nnames: [a, b, c]\n"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no label": (unlabel, "train: none of the 4 images has a label; expected .txt files in a"),
    "no label files": (
        without_label_files,
        "train: none of the images has a label file; expected .txt files",
    ),
    "all damaged": (lambda data: damage(data, "0", "1", "2", "3")(), "repair or remove the image"),
    "no train folder": (
        lambda data: (data.parent / "images" / "train").rename(data.parent / "gone"),
        "images/train does not exist; expected at least one image",
    ),
    "no folder": (
        lambda data: (data.parent / "images").rename(data.parent / "gone"),
        "correct 'path', 't",
    ),
    "no data.yaml": (lambda data: data.unlink(), "no such file; expected an Ultralytics data.yaml"),
    "broken data.yaml": (lambda data: data.write_text("train: ["), "not a readable YAML file"),
    "other channels": (
        lambda data: data.write_text(YAML + "channels: 1\n"),
        "channels 1, its data at the start",
    ),
    "class lost": (
        lambda data: data.write_text(YAML.replace("a, b, c", "a, b")),
        "names: found [a, b], expected what it was at the start [a, b, c], in any",
    ),
    "class added": (
        lambda data: data.write_text(YAML.replace("a, b, c", "a, b, c, d")),
        "[a, b, c, d], exp",
    ),
    "class renamed": (
        lambda data: data.write_text(YAML.replace("a, b, c", "a, b, z")),
        "names: found [a, b, z",
    ),
}


@pytest.fixture(scope="module")
def broken_and_mended(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, str]]:
    """The rows of a client whose data is broken in rounds 2, 4, ... and as before in all others."""
    folder = tmp_path_factory.mktemp("broken")
    data = make_dataset(folder / "data", num_train=4)
    other = make_dataset(folder / "other", num_train=2, seed=1)
    backup = shutil.copytree(data.parent, folder / "backup")  # keeps times

    def mend() -> None:
        shutil.rmtree(data.parent)
        shutil.copytree(backup, data.parent)

    changes: Changes = {}
    for number, (break_it, _) in enumerate(BROKEN.values(), 1):
        changes["train", 2 * number] = partial(break_it, data)
        changes["train", 2 * number + 1] = mend
    num_rounds = 2 * len(BROKEN) + 1
    result = run([data, other], folder / "runs", changes, num_rounds=num_rounds)
    assert len(result.rounds) == num_rounds
    return rows_of(folder / "runs")


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_trained_is_left_out_and_comes_back(
    name: str, broken_and_mended: dict[int, tuple[str, str]]
) -> None:
    number, (_, reason) = 2 * list(BROKEN).index(name) + 2, BROKEN[name]
    assert broken_and_mended[number][0] == ""
    assert reason in broken_and_mended[number][1]
    assert broken_and_mended[number + 1] == ("4", "")


def test_single_damaged_images_are_left_out_and_counted(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=5)
    run(data, tmp_path / "runs", {("train", 2): damage(data, "1", "2")}, num_rounds=2)
    assert rows_of(tmp_path / "runs")[2] == (
        "3",
        "its train split has 3 images now, 5 before; 2 more cannot be used and are left out",
    )


def test_a_list_of_images_may_change_and_name_images_that_are_gone(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=6)
    train_list = data.parent / "train.txt"
    lines = [f"./images/train/{i}.jpg\n" for i in range(6)]
    train_list.write_text("".join(lines))
    data.write_text(YAML.replace("images/train", "train.txt"))
    changes = {
        ("train", 2): write(train_list, "".join(lines[:4])),
        ("train", 3): take(data, "1"),
    }
    run(data, tmp_path / "runs", changes)
    rows = rows_of(tmp_path / "runs")
    assert rows[2] == ("4", "its train split has 4 images now, 6 before")
    assert rows[3] == (
        "3",
        "its train split has 3 images now, 4 before; 1 more cannot be used and are left out",
    )


@pytest.mark.parametrize("forgetful", [False, True])
def test_classes_in_another_order_are_matched_by_name(forgetful: bool, tmp_path: Path) -> None:
    """Labels and data.yaml renumbered alike: the same training, bit for bit, but for the note."""
    data = make_dataset(tmp_path / "plain", num_train=4)
    expected = run(data, tmp_path / "expected", {}, num_rounds=2)
    data = make_dataset(tmp_path / "data", num_train=4)

    def renumber() -> None:
        for path in (data.parent / "labels").rglob("*.txt"):
            lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
            path.write_text("".join(f"{(int(c) + 1) % 3} {rest}\n" for c, rest in lines))
        data.write_text(YAML.replace("a, b, c", "c, a, b"))

    run(data, tmp_path / "runs", {("train", 2): renumber}, forgetful=forgetful, num_rounds=2)
    assert rows_of(tmp_path / "runs")[2] == (
        "4",
        "its train split has changed, and has 4 images as before; it lists its classes "
        "differently than before",
    )
    found = outcome(tmp_path / "runs" / "run")
    wanted = outcome(expected.run_dir)
    for tables in (found, wanted):
        tables.pop("clients.csv")
    assert_same(found, wanted)


def test_a_classifier_loses_images_and_a_class(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "data", num_train=9, num_val=3)
    other = make_class_folders(tmp_path / "other", num_train=6, seed=1)
    away = tmp_path / "away"
    changes = {
        ("train", 2): in_turn(*((data / "train" / "a" / f"{i}.jpg").unlink for i in (0, 3))),
        ("train", 3): rename(data / "train" / "a", away),
        ("train", 4): rename(away, data / "train" / "a"),
    }
    settings = {"base_model": "yolo11n-cls.yaml", "num_rounds": 4, "evaluate": {"every": 1}}
    run([data, other], tmp_path / "runs", changes, **settings)
    rows = rows_of(tmp_path / "runs")
    assert rows[2] == ("7", "its train split has 7 images now, 9 before")
    assert rows[3][0] == ""
    assert "class 'a' has no folder in train [b, c]" in rows[3][1]
    assert rows[4] == ("7", "")


def test_the_val_split_of_a_client_may_change_too(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2, num_val=3)
    other = make_dataset(tmp_path / "other", num_train=2, seed=1)
    changes = {
        ("evaluate", 2): take(data, "0", split="val"),
        ("evaluate", 3): take(data, "1", "2", split="val"),
        ("evaluate", 5): put_back(data, split="val"),
    }
    for forgetful in (False, True):
        folder = tmp_path / f"runs{forgetful}"
        settings: dict[str, Any] = {"num_rounds": 5, "evaluate": {"every": 1}}
        run([data, other], folder, changes, forgetful=forgetful, **settings)
        rows = [r for r in read_csv(folder / "run" / "clients.csv") if r["client"] == "c0"]
        assert [row["num_val"] for row in rows] == ["3", "2", "", "", "3"]
        assert [row["num_examples"] for row in rows] == ["2"] * 5  # trained without a val split
        assert rows[1]["note"] == "its val split has 2 images now, 3 before"
        assert "val: No images found in" in rows[2]["note"]
        assert rows[4]["note"] == "its val split has 3 images now, 2 before"


def test_the_servers_data_may_change_and_a_round_without_it_has_no_score(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    held_out = make_dataset(tmp_path / "held_out", num_train=1, num_val=4, seed=3)
    gone = tmp_path / "gone"
    display = Silent()
    changes = {
        ("evaluate", 2): take(held_out, "0", split="val"),
        ("evaluate", 3): rename(held_out.parent, gone),
        ("evaluate", 4): rename(gone, held_out.parent),
        ("evaluate", 5): write(held_out, YAML.replace("a, b, c", "a, b, c, x")),
    }
    settings = {"num_rounds": 5, "evaluate": {"every": 1, "data": str(held_out)}}
    result = run(data, tmp_path / "runs", changes, display=display, **settings)
    scored = [round_.score is not None for round_ in result.rounds]
    assert scored == [True, True, False, True, False]
    assert display.notices[0] == "evaluate.data: its val split has 3 images now, 4 before"
    assert "no such file; expected an Ultralytics data.yaml" in display.notices[1]
    assert "class 'x' is not one of the federation's [a, b, c]" in display.notices[2]


def test_a_run_is_resumed_though_a_client_has_no_images_meanwhile(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=4)
    other = make_dataset(tmp_path / "other", num_train=2, seed=1)
    with pytest.raises(Stopped):
        run([data, other], tmp_path / "runs", {("train", 2): stop}, num_rounds=4)
    take(data, "0", "1", "2", "3")()
    changes = {("train", 3): in_turn(put_back(data), take(data, "2"))}
    run([data, other], tmp_path / "runs", changes, num_rounds=4, resume=True)
    rows = rows_of(tmp_path / "runs")
    assert rows[1] == ("4", "")
    assert "train: No images found in" in rows[2][1]
    assert rows[3] == ("3", "its train split has 3 images now, 4 before")


def test_a_resumed_run_takes_the_classes_that_a_client_has_then(tmp_path: Path) -> None:
    """As the message says that leaves it out."""
    data = make_dataset(tmp_path / "data", num_train=2)
    data.write_text(YAML.replace("a, b, c", "a, b, c, d"))  # nothing is labelled d
    other = make_dataset(tmp_path / "other", num_train=2, seed=1)
    changes = {("train", 2): write(data, YAML), ("train", 3): stop}
    with pytest.raises(Stopped):
        run([data, other], tmp_path / "runs", changes)
    names = ["a", "b", "c", "d"]  # args.yaml has them
    run([data, other], tmp_path / "runs", {}, resume=True, names=names)
    rows = rows_of(tmp_path / "runs")
    assert "found [a, b, c], expected what it was at the start [a, b, c, d]" in rows[2][1]
    assert "stop the run and resume it with this" in rows[2][1]
    assert rows[3] == ("2", "it lists its classes differently than before")


def test_what_a_site_says_of_changes_names_no_file(tmp_path: Path) -> None:
    from sites import run as run_sites

    data = make_dataset(tmp_path / "north", num_train=4)
    make_dataset(tmp_path / "south", num_train=2, seed=1)
    configs = [node_config(tmp_path, name) for name in ("north", "south")]
    changes = {
        ("train", 2): take(data, "1"),
        ("train", 3): take(data, "0", "2", "3"),
        ("train", 4): in_turn(put_back(data), write(data, YAML.replace("a, b, c", "a, b"))),
        ("train", 5): write(data, YAML),
    }
    grid = ChangingGrid(2, changes, forgetful=True, sites=configs)
    settings: dict[str, Any] = {"num_rounds": 5, "train": SMALL, "evaluate": {"every": 0}}
    result, _ = run_sites(grid, tmp_path, **settings)
    notes = {
        row["round"]: row["note"]
        for row in read_csv(result.run_dir / "clients.csv")
        if row["client"] == "north"
    }
    assert notes["2"] == "its train split has 3 images now, 4 before"
    assert notes["3"].startswith("train: No images found in (a path)")
    assert "names: found [a, b], expected what it was at the start [a, b, c]" in notes["4"]
    assert notes["5"] == "its train split has 4 images now, 3 before"
    assert str(tmp_path) not in (result.run_dir / "clients.csv").read_text()


def test_a_site_that_annotates_other_classes_than_the_server_knows_of_is_left_out(
    tmp_path: Path,
) -> None:
    from sites import run as run_sites

    for seed, name in enumerate(("north", "south")):
        make_dataset(tmp_path / name, num_train=2, seed=seed)
    configs = [node_config(tmp_path, name) for name in ("north", "south")]
    grid = ChangingGrid(2, {}, sites=configs)
    north = next(iter(grid._contexts.values())).node_config
    grid.changes["train", 2] = lambda: north.update({"not-annotated": "a"})
    result, _ = run_sites(grid, tmp_path, train=SMALL, evaluate={"every": 0})
    notes = [r["note"] for r in read_csv(result.run_dir / "clients.csv") if r["client"] == "north"]
    assert notes[0] == ""
    assert "node-config: not-annotated: found [a], expected what it was at the start []" in notes[1]


def test_data_is_only_read_while_it_changes(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=4)
    expected: dict[str, str] = {}
    change = in_turn(damage(data, "1"), lambda: expected.update(file_digests(data.parent)))
    run(data, tmp_path / "runs", {("train", 2): change}, evaluate={"every": 1})
    assert file_digests(data.parent) == expected


HOOK = '''
import shutil
from pathlib import Path

from federated_yolo import YoloClient


class Losing(YoloClient):
    """north loses all images but one in round 2, the last in round 3, and has all in round 4."""

    def train(self, round_number, arrays, config):
        images, away = Path(PLACE, "north/images/train"), Path(PLACE, "away")
        gone = {2: ["1", "2", "3"], 3: ["0"]}.get(round_number, [])
        if self.name == "north":
            for name in gone:
                shutil.move(images / f"{name}.jpg", away)
            if round_number == 4:
                for file in away.iterdir():
                    shutil.move(file, images)
        return super().train(round_number, arrays, config)
'''


def test_a_simulation_goes_on_while_a_client_loses_and_regains_its_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("north", "south")):
        make_dataset(tmp_path / name, num_train=4, num_val=2, seed=seed)
    (tmp_path / "away").mkdir()
    hook = tmp_path / "losing.py"
    hook.write_text(HOOK.replace("PLACE", repr(str(tmp_path))))
    config = write_config(
        tmp_path,
        datasets=[{"name": n, "data": str(tmp_path / n / "data.yaml")} for n in ("north", "south")],
        train=SMALL,
        client=f"{hook}:Losing",
        num_rounds=4,
        evaluate={"every": 0},
    )
    done = federated(str(config), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "runs" / "train" / "clients.csv")
    north = {r["round"]: (r["num_examples"], r["note"]) for r in rows if r["client"] == "north"}
    assert north["1"] == ("4", "")
    assert north["2"] == ("1", "its train split has 1 image now, 4 before")
    assert north["3"][0] == ""
    assert "train: No images found in" in north["3"][1]
    assert north["4"] == ("4", "its train split has 4 images now, 1 before")
    assert [r["num_examples"] for r in rows if r["client"] == "south"] == ["4"] * 4


def test_a_classifier_that_was_evaluated_is_resumed(tmp_path: Path) -> None:
    """Its validator is shown links to the data, which a run directory must not have."""
    data = make_class_folders(tmp_path / "data", num_train=4, num_val=2)
    settings = {"base_model": "yolov8n-cls.yaml", "evaluate": {"every": 1, "data": str(data)}}
    whole = federation([data], tmp_path / "whole", TRAIN, num_rounds=2, **settings)
    federation([data], tmp_path / "parts", TRAIN, num_rounds=1, **settings)
    assert not [p for p in (tmp_path / "parts").rglob("*") if p.is_symlink()]
    again = federation([data], tmp_path / "parts", TRAIN, num_rounds=1, resume=True, **settings)
    assert len(again.rounds) == 1
    assert whole.rounds[0].row["fitness"] == again.rounds[0].row["fitness"]
