"""What a round costs: an epoch inside one long training, a client's round, the obvious recipe.

    python benchmarks/round_cost.py DATA.yaml [--base yolov8n.yaml] [--imgsz 320] [--repeats 7]

Interleaved in one process with one thread, so that all three meet the same machine:

plain   an epoch inside one `YOLO(base).train(epochs=...)`, without validation and saving
round   `YoloClient.fit`: load the global arrays, train one epoch, save the state, return arrays
recipe  `YOLO(base).train(epochs=1)` for a round, as in tutorials; with Ultralytics' defaults,
        and again without validation, saving and plots

Medians in seconds, and ratios to the plain epoch. The first repeat of each is left out.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from federated_yolo.common.environment import prepare_environment, remove_private_settings

LEAN = {"val": False, "save": False, "plots": False}


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    prepare_environment()
    try:
        with tempfile.TemporaryDirectory() as folder:
            print_table(measure(options, Path(folder)))
    finally:
        remove_private_settings()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each kind, in the order of the repeats, which take turns."""
    from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

    ensure_torchvision_nms()
    train = {
        "imgsz": options.imgsz,
        "batch": options.batch,
        "nbs": options.batch,
        "optimizer": "SGD",
        "close_mosaic": 0,
    }
    turns = options.repeats + 1
    plain = PlainEpochs(options, train, turns, folder / "plain")
    client_round = client_rounds(options, train, turns, folder / "client")
    kinds: dict[str, Callable[[], object]] = {
        "plain epoch": plain.next,
        "round": client_round,
        "recipe": recipe(options, train, folder / "recipe"),
        "recipe, lean": recipe(options, {**train, **LEAN}, folder / "lean"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns):
        for name, run in kinds.items():
            started = time.perf_counter()
            run()
            if turn:  # the first pays for set-up
                seconds[name].append(time.perf_counter() - started)
        print(f"repeat {turn} of {options.repeats} done", file=sys.stderr)
    return seconds


class PlainEpochs:
    """One long plain training in a thread, let run for one epoch at a time."""

    def __init__(
        self, options: argparse.Namespace, train: dict[str, Any], epochs: int, folder: Path
    ) -> None:
        import torch
        from ultralytics import YOLO

        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        model = YOLO(options.base)
        model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
        model.add_callback("on_train_epoch_start", lambda _: self.go.acquire())
        model.add_callback("on_fit_epoch_end", lambda _: self.done.release())
        arguments = {**train, **LEAN, "data": str(options.data), "device": options.device}
        arguments.update(project=str(folder), epochs=epochs, seed=0)
        # Daemonic: the last epoch's final validation need not be waited for.
        threading.Thread(target=model.train, kwargs=arguments, daemon=True).start()

    def next(self) -> None:
        """Run the next epoch."""
        self.go.release()
        self.done.acquire()


def client_rounds(
    options: argparse.Namespace, train: dict[str, Any], rounds: int, folder: Path
) -> Callable[[], object]:
    """A function that runs a client's next round, from arrays to arrays."""
    from federated_yolo.client.yolo_client import YoloClient
    from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
    from federated_yolo.yolo.checkpoint import load_base, weights_of
    from federated_yolo.yolo.class_branch import architecture_of
    from federated_yolo.yolo.model import build_model, to_arrays
    from federated_yolo.yolo.slice_mixin import SliceSettings

    data = read_data_yaml(options.data, where="data")
    base = load_base(options.base)
    model = build_model(base, "detect", data, train)
    settings = SliceSettings(
        architecture=architecture_of(model, weights_of(base, train.get("pretrained"))),
        task="detect",
        data=write_private_yaml(data, folder),
        private_dir=folder,
        train=train,
        num_rounds=rounds,
        local_epochs=1,
        seed=0,
        device=options.device,
        num_threads=1,
    )
    client = YoloClient("client", settings)
    parameters = list(to_arrays(model).values())
    round_number = 0

    def run() -> None:
        nonlocal parameters, round_number
        round_number += 1
        parameters, _, _ = client.fit(parameters, {"server-round": round_number})

    return run


def recipe(
    options: argparse.Namespace, train: dict[str, Any], folder: Path
) -> Callable[[], object]:
    """A function that runs one round as tutorials write it."""
    import torch
    from ultralytics import YOLO

    def run() -> None:
        model = YOLO(options.base)
        model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
        arguments = {"data": str(options.data), "device": options.device, "exist_ok": True}
        model.train(**arguments, **train, epochs=1, project=str(folder), name="round")

    return run


def print_table(seconds: dict[str, list[float]]) -> None:
    """Print medians, their spread, and ratios to the plain epoch of the same repeat."""
    plain = seconds["plain epoch"]
    print(f"{'':14} {'median s':>9} {'min':>7} {'max':>7} {'x plain':>8}")
    for name, values in seconds.items():
        ratio = statistics.median(v / p for v, p in zip(values, plain, strict=True))
        row = f"{statistics.median(values):9.3f} {min(values):7.3f} {max(values):7.3f} {ratio:8.2f}"
        print(f"{name:14} {row}")


if __name__ == "__main__":
    main()
