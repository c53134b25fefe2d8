"""What a message tells is parsed once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import TRAIN, federation

from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.protocol.instructions import Instructions


def test_instructions_and_seat_are_parsed_once_for_each_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: Counter[str] = Counter()
    for kind in (Instructions, ClientAssignment):

        def counted(text: str, kind: Any = kind, parse: Any = kind.from_json) -> Any:
            parsed[kind.__name__] += 1
            return parse(text)

        monkeypatch.setattr(kind, "from_json", counted)
    grid = LocalGrid(1)
    data = make_dataset(tmp_path / "data", num_train=2, num_val=1)
    federation([data], tmp_path / "runs", TRAIN, grid=grid, num_rounds=1, evaluate={"every": 1})
    kinds = [message.metadata.message_type for message in grid.sent]
    assert kinds == ["query.hello", "query", "train", "evaluate"]
    assert parsed == {"Instructions": 3, "ClientAssignment": 3}
