"""Sites that come, are refused, go and come back; in one process, through the real messages."""

import gc
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_grid import LocalGrid
from recipes import assert_same_training, make_dataset, outcome
from sites import SETTINGS, run, sites
from trainings import Silent

from federated_yolo.checks.federation import checked
from federated_yolo.client import workspace as client_module
from federated_yolo.config.schema import Config
from federated_yolo.protocol import handshake as greeting_module
from federated_yolo.protocol.handshake import Introduction
from federated_yolo.runtime.startup import make_server
from federated_yolo.server.results import RunResult
from federated_yolo.storage.run_dir import RunDir, read_csv
from federated_yolo.yolo.evaluator import Evaluation, Evaluator

NO_SCORES: dict[str, Any] = {"evaluate": {"every": 0}}  # where nothing looks at scores


def test_sites_train_as_the_clients_of_a_simulation_do_bit_for_bit(tmp_path: Path) -> None:
    grid = sites(tmp_path, "south", "north")  # the order in which they come does not matter
    deployed, _ = run(grid, tmp_path)
    listed = [{"name": n, "data": str(tmp_path / n / "data.yaml")} for n in ("north", "south")]
    config = Config.model_validate(
        {"datasets": listed, "save_dir": str(tmp_path / "simulated"), **SETTINGS}
    )
    with checked(config) as federation:
        run_dir = RunDir.create(tmp_path / "simulated", "run")
        local: Any = LocalGrid(2)
        simulated = make_server(federation, Silent(), run_dir).run(local)
    assert_same_training(outcome(deployed.run_dir), outcome(simulated.run_dir))


def test_a_site_keeps_the_global_model_and_its_paths_to_itself(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north")
    result, _ = run(grid, tmp_path)
    (private,) = (tmp_path / "private" / "north").glob("train-*")
    assert (private / "best.pt").exists()
    assert (private / "last.pt").exists()
    assert not (result.run_dir / "clients" / "north").exists()
    for message in (*grid.received, *grid.sent):
        records = message.content.config_records if message.has_content() else {}
        assert str(tmp_path / "north") not in str([dict(r) for r in records.values()])


def test_a_site_keeps_the_model_that_it_trains_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a site that is not there is asked when the run is resumed."""
    scores = itertools.count(1)  # so that it is better
    monkeypatch.setattr(
        Evaluator, "__call__", lambda *_, **__: Evaluation({}, next(scores) / 1000, 2, {})
    )
    grid, display = sites(tmp_path, "north", "south"), Silent()

    def leave(_: Any) -> None:
        grid.gone = {1007}

    display.round_done = leave  # type: ignore[method-assign]
    settings = {"num_rounds": 1, "personalise": {"epochs": 1}, **NO_SCORES}
    result, _ = run(grid, tmp_path, display, **settings)
    reply = grid.received[-1]
    assert reply.metadata.message_type == "train.personalise"
    assert not reply.content.array_records
    (private,) = (tmp_path / "private" / "north").glob("train-*")
    assert (private / "personal.pt").exists()
    assert not (result.run_dir / "clients" / "north").exists()
    rows = read_csv(result.run_dir / "personal.csv")
    assert [(row["client"], row["kept"], row["note"]) for row in rows] == [
        ("north", "true", ""),
        ("south", "", "it was not there"),
    ]
    assert display.notices[-1] == "personal.csv lacks south; a resumed run tries again"
    gc.collect()  # nobody holds its directory any more
    listed = [{"name": "north"}, {"name": "south"}]
    grid = sites(tmp_path, "north", "south")
    run(grid, tmp_path, resume=result.run_dir, datasets=listed, **settings)
    asked = [m.metadata for m in grid.sent if m.metadata.message_type == "train.personalise"]
    assert [metadata.dst_node_id for metadata in asked] == [1007]
    assert [row["kept"] for row in read_csv(result.run_dir / "personal.csv")] == ["true", "true"]


def test_a_site_that_fails_says_why_without_paths(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north", "south")

    def lose_the_data(reply: Any) -> Any:
        if reply.metadata.message_type == "query":
            (tmp_path / "north" / "data.yaml").unlink(missing_ok=True)
        return reply

    grid.tamper = lose_the_data
    display = Silent()
    run(grid, tmp_path, display, num_rounds=1, **NO_SCORES)
    (name, reason), *_ = display.failures
    assert name == "north"
    assert "(a path)" in reason
    assert str(tmp_path) not in reason


def test_a_site_that_goes_is_left_out_and_comes_back(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north", "south")
    display = Silent()

    def come_and_go(result: Any) -> None:
        grid.gone = {1007} if result.round == 1 else set()

    display.round_done = come_and_go  # type: ignore[method-assign]
    result, _ = run(grid, tmp_path, display, num_rounds=3, **NO_SCORES)
    rows = [(r["round"], r["client"]) for r in read_csv(result.run_dir / "clients.csv")]
    assert rows == [("1", "north"), ("1", "south"), ("2", "north"), ("3", "north"), ("3", "south")]
    assert not display.failures


def test_a_site_that_comes_late_takes_part_and_keeps_its_seat(tmp_path: Path) -> None:
    grid = sites(tmp_path, "south", "north")
    grid.gone = {1007}
    display = Silent()

    def come(_: Any) -> None:
        grid.gone = set()

    display.round_done = come  # type: ignore[method-assign]
    result, _ = run(grid, tmp_path, display, **NO_SCORES)
    rows = [(r["round"], r["client"]) for r in read_csv(result.run_dir / "clients.csv")]
    assert rows == [("1", "south"), ("2", "north"), ("2", "south")]
    text = (result.run_dir / "args.yaml").read_text()
    assert text.index("south") < text.index("north")


def test_a_run_of_sites_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    """Their states are with them, not in the server's run directory."""
    whole, _ = run(sites(tmp_path, "north", "south"), tmp_path, name="whole")
    display = Silent()

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    display.round_done = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(sites(tmp_path, "north", "south"), tmp_path, display, name="stopped")
    gc.collect()  # nobody holds its directory any more
    run_dir = tmp_path / "runs" / "stopped"
    assert len(read_csv(run_dir / "results.csv")) == 1
    listed = [{"name": "north"}, {"name": "south"}]  # as args.yaml has them
    run(sites(tmp_path, "north", "south"), tmp_path, resume=run_dir, datasets=listed)
    assert_same_training(outcome(run_dir), outcome(whole.run_dir))


def without_folders_after_round_1(
    folder: Path, **settings: Any
) -> tuple[RunResult, Silent, list[dict[str, str]]]:
    """A run in which site north's folder is gone after the first round."""
    grid, display = sites(folder, "north", "south"), Silent()

    def lose(result: Any) -> None:
        if result.round == 1:
            shutil.rmtree(folder / "private" / "north")
            client_module.held_clients.clear()  # a SuperNode's process ends with each message

    display.round_done = lose  # type: ignore[method-assign]
    result, _ = run(grid, folder, display, num_rounds=3, **settings)
    return result, display, read_csv(result.run_dir / "clients.csv")


def test_a_site_that_has_lost_its_state_goes_on_and_says_so(tmp_path: Path) -> None:
    _, display, rows = without_folders_after_round_1(tmp_path, **NO_SCORES)
    assert not display.failures
    notes = {(row["round"], row["client"]): row["note"] for row in rows if row["note"]}
    expected = "its folder has lost what it kept after round 1, so it goes on from the global"
    assert list(notes) == [("2", "north")]
    assert expected in notes["2", "north"]


def test_a_site_that_has_lost_its_own_arrays_does_not_go_on_with_others(tmp_path: Path) -> None:
    result, display, rows = without_folders_after_round_1(
        tmp_path, shared={"parts": ["backbone", "neck"]}
    )
    assert {name for name, _ in display.failures} == {"north"}
    assert all("and with it the arrays that are its own" in why for _, why in display.failures)
    trained = [(row["round"], row["client"]) for row in rows if row["num_examples"]]
    assert trained == [("1", "north"), ("1", "south"), ("2", "south"), ("3", "south")]
    assert result.rounds[-1].row["num_clients"] == 1


def test_a_name_that_another_node_takes_is_told_and_the_first_one_is_refused_aloud(
    tmp_path: Path,
) -> None:
    grid = sites(tmp_path, "north", "north", "south")
    first, second = 1000, 1007
    grid.gone = {second}
    display = Silent()
    gone = iter([{first}, set(), set()])  # before rounds 2, 3 and the end

    def change(_: Any) -> None:
        grid.gone = next(gone)

    display.round_done = change  # type: ignore[method-assign]
    said: list[str] = []
    display.notice = said.append  # type: ignore[method-assign]
    run(grid, tmp_path, display, num_rounds=3, **NO_SCORES)
    assert any("'north': it is node 1007 now, and was node 1000" in text for text in said)
    assert any(f"node {first} is refused: " in t and "another one of that name" in t for t in said)


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        (
            {"datasets": [{"name": "north"}, {"name": "east"}], "min_clients": 1},
            {},
            "SuperNode 'south' is not one of the federation's clients [north, east]",
        ),
        ({"names": ["a", "b"]}, {}, "class 'c' is not one of the federation's [a, b]"),
        ({}, {"name": "../up"}, "name: found '(a path)', expected letters"),
        ({}, {"not-annotated": "z"}, "not-annotated: 'z' is not one of its classes"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_the_reason(
    settings: dict[str, Any], change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "north", 4, 2, names=("a", "b"))
    grid = sites(tmp_path, "north", "south")
    grid._contexts[1007].node_config.update(change)
    result, said = run(grid, tmp_path, num_rounds=1, **NO_SCORES, **settings)
    assert "is refused: " in said
    assert reason in said
    clients = {row["client"].lower() for row in read_csv(result.run_dir / "clients.csv")}
    assert clients == {"north"}


def test_of_two_sites_that_come_under_one_name_none_is_taken(tmp_path: Path) -> None:
    """Nobody can tell which of them is an impostor, also if it writes the name in capitals."""
    grid = sites(tmp_path, "north", "south", "east")
    grid._contexts[1007].node_config["name"] = "NORTH"
    result, said = run(grid, tmp_path, num_rounds=1, **NO_SCORES)
    for node, name in ((1000, "north"), (1007, "NORTH")):
        reason = f"SuperNode '{name.lower()}': 2 nodes have come under this name, so none is taken"
        assert f"node {node} is refused: {reason}" in said
    assert "site 'east' is there: node 1014" in said
    assert {row["client"] for row in read_csv(result.run_dir / "clients.csv")} == {"east"}


def test_a_name_is_in_one_line_before_it_is_on_a_screen(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north", "south", "east")

    def rename(reply: Any) -> Any:
        if reply.metadata.message_type == "query.hello" and reply.metadata.src_node_id < 1014:
            record = reply.content.config_records["introduction"]
            introduction = Introduction.from_json(record["json"])
            name = "\x1b[2J\nsite 'north' is there: node 1000"
            record["json"] = replace(introduction, name=name).to_json()
        return reply

    grid.tamper = rename
    _, said = run(grid, tmp_path, num_rounds=1, **NO_SCORES)
    assert "2 nodes have come under this name" in said
    assert "\x1b" not in said
    assert not [line for line in said.splitlines() if line.startswith("site 'north' is there")]


def test_a_site_with_other_packages_is_refused_here_and_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grid = sites(tmp_path, "north")
    real = greeting_module.versions()
    asked = 0

    def versions() -> dict[str, str]:
        nonlocal asked
        asked += 1
        return {**real, "torch": "1.0"} if asked == 2 else real  # the first is the server's

    monkeypatch.setattr(greeting_module, "versions", versions)
    monkeypatch.setattr(
        "federated_yolo.server.registry.ASK_AGAIN_S", 0.0
    )  # until it has been mended
    _, said = run(grid, tmp_path, num_rounds=1, **NO_SCORES)
    expected = f"torch is 1.0 here and {real['torch']} at the server; install what the server has"
    assert expected in said
    assert expected in caplog.text


def test_nodes_of_a_simulation_and_sites_are_not_mixed(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north")
    listed = [{"name": "north", "data": str(tmp_path / "north" / "data.yaml")}]
    config = Config.model_validate(
        {"datasets": listed, "save_dir": str(tmp_path / "runs"), **SETTINGS}
    )
    local: Any = grid
    with checked(config) as federation:
        server = make_server(federation, Silent(), RunDir.create(tmp_path / "runs", "run"))
        with pytest.raises(RuntimeError, match="write datasets: supernodes"):
            server.run(local)
