"""A client's own model after the last round: trained on from the global one, kept if better."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from federated_yolo.common.errors import InputError
from federated_yolo.common.text import reason_of
from federated_yolo.config.schema import SharedConfig
from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.model import load_into, to_arrays
from federated_yolo.yolo.slice_mixin import SliceSettings

if TYPE_CHECKING:
    from federated_yolo.client.yolo_client import YoloClient

PERSONAL = "personal"  # stem of the .pt and name of a folder in a client's private folder


@dataclass(frozen=True)
class PersonalResult:
    """Outcome of a client's training for itself.

    is_kept: Whether the personal model is better, so that personal.pt has it. num_examples: Images
    of the val split that decided. scores: Ultralytics' metrics and "fitness", by
    "global/NAME" and "personal/NAME" on the val split, "test/global/NAME" and
    "test/personal/NAME" on the test split; "seconds" of all the work.
    """

    is_kept: bool
    num_examples: int
    scores: dict[str, float]


def personal_settings(settings: SliceSettings, epochs: int, lr0: float) -> SliceSettings:
    """Return the settings of a client's training for itself: a plain one, of one round.

    settings: Settings of its training in the federation.
    """
    return replace(
        settings,
        private_dir=settings.private_dir / PERSONAL,
        train={**settings.train, "lr0": lr0},
        num_rounds=1,
        local_epochs=epochs,
        averages_per_round=1,
        shared=SharedConfig(),
    )


def personalise(client: "YoloClient", config: Mapping[str, Any]) -> PersonalResult:
    """Train on from the arrays in `client.model`; keep the result as personal.pt if it is better.

    It is better if its fitness on the val split is higher. Otherwise no personal.pt is left.

    config: "epochs" and "lr0" of this training; with "on-test", both models are also scored on the
    test split, and if that cannot be used, `client.notes` says so.
    Raises InputError if the val split cannot be used, and any error of the training.
    """
    started = time.perf_counter()
    settings = personal_settings(client.settings, int(config["epochs"]), float(config["lr0"]))
    path = client.settings.private_dir / f"{PERSONAL}.pt"
    path.unlink(missing_ok=True)  # of an earlier time, whose settings were others
    before = client.evaluator(client.model)
    on_test = dict(_test_scores(client, "global")) if config.get("on-test") else {}
    result = client.trainer.train_alone(settings, to_arrays(client.model))
    client.notes += result.notes
    load_into(client.model, result.arrays)
    after = client.evaluator(client.model)
    is_kept = after.fitness > before.fitness
    if is_kept:
        save_checkpoint(path, client.model, settings.train)
    if config.get("on-test"):
        on_test.update(_test_scores(client, PERSONAL))
    scores = {"global/fitness": before.fitness, "personal/fitness": after.fitness}
    for name, value in before.metrics.items():
        scores |= {f"global/{name}": value, f"personal/{name}": after.metrics[name]}
    seconds = time.perf_counter() - started
    return PersonalResult(is_kept, before.num_examples, {**scores, **on_test, "seconds": seconds})


def _test_scores(client: "YoloClient", model: str) -> Iterator[tuple[str, float]]:
    """Yield the scores of the present arrays on the test split; none if it cannot be used."""
    try:
        result = client.evaluator(client.model, "test")
    except (InputError, FileNotFoundError) as error:  # the latter: an image was deleted
        client.notes.append(f"its test split was not scored: {reason_of(error)}")
        return
    yield f"test/{model}/fitness", result.fitness
    for name, value in result.metrics.items():
        yield f"test/{model}/{name}", value
