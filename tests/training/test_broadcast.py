"""What travels with a codec: deltas, of which both sides make the same arrays."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import (
    TRAIN,
    ForgetfulGrid,
    Silent,
    assert_identical,
    federation,
    final_arrays,
)

from federated_yolo.common.arrays import Arrays, Layout, checksum
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import CodecConfig
from federated_yolo.protocol.delta import Encoding
from federated_yolo.protocol.records import LACKS_ARRAYS, from_record, to_record
from federated_yolo.runtime import startup as simulation
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.model import batchnorm_arrays, build_model, parameter_names

TOPK: dict[str, Any] = {"codec": "topk", "evaluate": {"every": 1}, "num_rounds": 2}


def sites(folder: Path) -> list[Path]:
    return [
        make_dataset(folder / "a", num_train=2, num_val=1),
        make_dataset(folder / "b", num_train=4, num_val=1, seed=1),
    ]


@pytest.fixture(scope="module")
def with_topk(tmp_path_factory: pytest.TempPathFactory) -> tuple[ForgetfulGrid, Any]:
    """Two rounds of two clients, which change their process each time."""
    folder = tmp_path_factory.mktemp("topk")
    grid = ForgetfulGrid(2)
    return grid, federation(sites(folder), folder / "runs", TRAIN, grid=grid, **TOPK)


def rounds_of(result: Any) -> list[Arrays]:
    weights = result.run_dir / "weights"
    return [load_arrays(weights / f"round{r}.npz")[0] for r in range(len(result.rounds) + 1)]


def encoded(message: Message) -> Arrays:
    return from_record(message.content.array_records["encoded"])


def kinds(grid: LocalGrid) -> list[tuple[str, str]]:
    """Of each message with arrays to the first client: its type, and what it carries."""
    names = {0: "nothing", 2: "whole", 3: "delta"}
    return [
        (m.metadata.message_type, names[len(encoded(m))])
        for m in grid.sent
        if m.metadata.dst_node_id == 1000 and "encoded" in m.content
    ]


def test_all_parties_have_the_same_arrays_after_every_round(
    with_topk: tuple[LocalGrid, Any],
) -> None:
    grid, result = with_topk
    rounds = rounds_of(result)
    sent = [
        str(m.content.config_records["config"]["checksum"])
        for m in grid.sent
        if "encoded" in m.content
    ]
    assert list(dict.fromkeys(sent)) == [checksum(arrays) for arrays in rounds]
    for name in ("c0", "c1"):
        held, _ = load_arrays(result.run_dir / "clients" / name / "global.npz")
        assert_identical(held, rounds[2])
    changed = [n for n in rounds[0] if not np.array_equal(rounds[1][n], rounds[2][n])]
    assert len(changed) > 0.5 * len(rounds[0])


def test_arrays_travel_whole_once_and_then_what_changed_once_a_round(
    with_topk: tuple[LocalGrid, Any],
) -> None:
    assert kinds(with_topk[0]) == [
        ("train", "whole"),
        ("evaluate", "delta"),
        ("train", "nothing"),
        ("evaluate", "delta"),
    ]


def test_the_tables_count_the_encoded_bytes(with_topk: tuple[LocalGrid, Any]) -> None:
    grid, result = with_topk
    whole = sum(array.nbytes for array in final_arrays(result).values())
    replies = [r for r in grid.received if "encoded" in r.content]
    rows = read_csv(result.run_dir / "results.csv")
    found = sum(len(a.data) for r in replies for a in r.content.array_records["encoded"].values())
    assert sum(int(row["upload_bytes"]) for row in rows) == found
    assert found < 4 * whole / 10
    assert int(rows[1]["download_bytes"]) < 2 * whole / 10
    clients = read_csv(result.run_dir / "clients.csv")
    assert sum(int(row["upload_bytes"]) for row in clients) == found


def test_batchnorm_statistics_are_the_exact_means_of_the_clients(
    with_topk: tuple[LocalGrid, Any],
) -> None:
    grid, result = with_topk
    encoding = encoding_of(result)
    before, after = rounds_of(result)[1:]
    small, big = (
        encoding.rebuilt(encoded(r), before)
        for r in sorted(
            [r for r in grid.received if "encoded" in r.content][-2:],
            key=lambda r: r.metadata.src_node_id,
        )
    )
    for name in (n for n in after if "running" in n):
        mean = (2 * small[name].astype(float) + 4 * big[name].astype(float)) / 6
        np.testing.assert_allclose(after[name], mean, rtol=1e-6, err_msg=name)


def encoding_of(result: Any) -> Encoding:
    model = build_model("yolov8n.yaml", "detect", {"names": dict(enumerate("abc")), "nc": 3})
    layout = Layout.of(final_arrays(result))
    return Encoding(layout, CodecConfig(name="topk"), parameter_names(model))


def test_a_client_that_lost_its_folder_gets_whole_arrays_and_the_round_goes_on(
    with_topk: tuple[LocalGrid, Any], tmp_path: Path
) -> None:
    grid, display = LocalGrid(2), Silent()
    held = tmp_path / "runs/run/clients/c0/global.npz"

    def lose(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1000 and reply.metadata.message_type == "evaluate":
            held.unlink(missing_ok=True)
        return reply

    grid.tamper = lose
    result = federation(
        sites(tmp_path), tmp_path / "runs", TRAIN, grid=grid, display=display, **TOPK
    )
    assert not display.failures
    assert kinds(grid) == [
        ("train", "whole"),
        ("evaluate", "delta"),
        ("train", "nothing"),
        ("train", "whole"),
        ("evaluate", "delta"),
    ]
    assert_identical(final_arrays(result), final_arrays(with_topk[1]))


def one_round(folder: Path, grid: LocalGrid, display: Silent) -> None:
    federation(
        sites(folder),
        folder / "runs",
        TRAIN,
        grid=grid,
        display=display,
        codec="int8",
        num_rounds=1,
    )


def test_a_client_that_always_lacks_arrays_is_left_out(tmp_path: Path) -> None:
    grid, display = LocalGrid(2), Silent()

    def lie(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1000 and "encoded" in reply.content:
            del reply.content["encoded"]
            reply.content.config_records["client"][LACKS_ARRAYS] = True
        return reply

    grid.tamper = lie
    one_round(tmp_path, grid, display)
    assert display.failures == [("c0", "its reply has no 'encoded'")]


def test_a_damaged_encoding_is_refused_and_named(tmp_path: Path) -> None:
    grid, display = LocalGrid(2), Silent()

    def damage(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1000 and "encoded" in reply.content:
            arrays = encoded(reply)
            arrays["difference"] = arrays["difference"][:-9]
            reply.content["encoded"] = to_record(arrays)
        return reply

    grid.tamper = damage
    one_round(tmp_path, grid, display)
    ((name, reason),) = display.failures
    assert name == "c0"
    assert re.match(r"the encoded arrays (are cut off|have \d+ bytes or more)", reason)


def test_a_client_that_was_not_sampled_gets_whole_arrays(tmp_path: Path) -> None:
    grid = LocalGrid(2)
    settings: dict[str, Any] = {"fraction_train": 0.5, "num_rounds": 4, "codec": "float16"}
    federation(sites(tmp_path), tmp_path / "runs", TRAIN, grid=grid, **settings)
    trained = [m.metadata.dst_node_id for m in grid.sent if "encoded" in m.content]
    found = [len(encoded(m)) for m in grid.sent if "encoded" in m.content]
    again = [a == b for a, b in zip(trained[1:], trained[:-1], strict=True)]
    assert any(again)
    assert not all(again)
    assert found == [2] + [3 if is_again else 2 for is_again in again]  # delta, or whole


def test_with_nothing_encoded_increments_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sites(tmp_path)
    settings: dict[str, Any] = {"evaluate": {"every": 1}, "num_rounds": 2}
    train = {**TRAIN, "freeze": 10}
    plain = federation(data, tmp_path / "plain", train, **settings)
    original = simulation._instructions
    monkeypatch.setattr(
        simulation, "_instructions", lambda *args: replace(original(*args), sends_deltas=True)
    )
    result = federation(data, tmp_path / "runs", train, **settings)
    assert_identical(final_arrays(result), final_arrays(plain))
    found, before = (read_csv(r.run_dir / "results.csv")[1] for r in (result, plain))
    assert int(found["download_bytes"]) < 0.4 * int(before["download_bytes"])


def test_arrays_that_did_not_change_are_not_sent_back(tmp_path: Path) -> None:
    """The backbone is frozen: its weights and its statistics."""
    grid = LocalGrid(1)
    data = make_dataset(tmp_path / "data", num_train=2)
    result = federation([data], tmp_path / "runs", {**TRAIN, "freeze": 10}, grid=grid, num_rounds=1)
    reply = next(r for r in grid.received if "arrays" in r.content)
    returned = from_record(reply.content.array_records["arrays"])
    assert returned
    assert not [name for name in returned if int(name.split(".")[1]) < 10]
    start, end = rounds_of(result)
    for name in start:
        expected = returned[name] if name in returned else start[name]
        np.testing.assert_array_equal(end[name], expected)


def test_private_arrays_do_not_travel_in_increments(tmp_path: Path) -> None:
    grid = LocalGrid(2)
    result = federation(
        sites(tmp_path), tmp_path / "runs", TRAIN, grid=grid, **TOPK, shared={"batchnorm": "local"}
    )
    model = build_model("yolov8n.yaml", "detect", {"names": dict(enumerate("abc")), "nc": 3})
    num_shared = len(model.state_dict()) - len(batchnorm_arrays(model))
    messages = [m for m in (*grid.sent, *grid.received) if "encoded" in m.content]
    assert {len(encoded(m)["changed"]) for m in messages if encoded(m)} == {num_shared}
    held, _ = load_arrays(result.run_dir / "clients/c0/global.npz")
    assert_identical(held, final_arrays(result))
    assert len(held) == num_shared


def test_settings_that_do_not_fit_a_codec_are_refused_before_round_1(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"codec\.fraction: has no effect with codec int8"
    ) as error:
        federation(
            sites(tmp_path),
            tmp_path / "runs",
            TRAIN,
            codec={"name": "int8", "fraction": 0.1},
            server_ema=0.5,
        )
    assert "server_ema: the average would have to travel whole" in str(error.value)
    assert not (tmp_path / "runs").exists()
