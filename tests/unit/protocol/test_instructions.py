"""What a message tells a client."""

from federated_yolo.config.schema import CodecConfig, PrivacyConfig, SharedConfig
from federated_yolo.protocol import instructions as instructions_module
from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.yolo.class_branch import Architecture


def test_instructions_survive_json() -> None:
    instructions = instructions_module.Instructions(
        run_id="r",
        start_id="s",
        architecture=Architecture(
            {"nc": 2, "backbone": [[-1, 1, "Conv", [64, 3, 2]]], "activation": None},
            {"model.23.cv3.0.2.weight": (2, 80, 1, 1)},
            new_class_rows=True,
        ),
        task="detect",
        digest="d",
        names=("a", "b"),
        shared=SharedConfig(batchnorm="local", parts=("neck", "head")),
        keep_optimizer=False,
        train={"lr0": 1e-5, "freeze": [1, 2], "pretrained": True},
        num_rounds=3,
        local_epochs=2,
        averages_per_round=3,
        seed=7,
        num_clients=3,
        device="cpu",
        num_threads=2,
        round_timeout_s=1.5,
        cross_client=True,
        client="utils/mine.py:Mine",
        sends_deltas=True,
        codec=CodecConfig(name="topk", fraction=0.5),
        privacy=PrivacyConfig(mode="local", clipping_norm=0.1, noise_multiplier=1e-3),
    )
    assert instructions_module.Instructions.from_json(instructions.to_json()) == instructions
    assignment = ClientAssignment(3, "north", 2, "/data.yaml", ("b",), 3, "/run/north")
    assert ClientAssignment.from_json(assignment.to_json()) == assignment
