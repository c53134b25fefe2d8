"""What an evaluation costs beyond the forward passes of its images.

    python benchmarks/evaluation_cost.py MODEL.pt DATA.yaml [--imgsz 320] [--repeats 7]

MODEL.pt should be trained: an untrained model predicts boxes everywhere, and sorting those out
takes longer than predicting them. Interleaved in one process with one thread: the fused model on
the val split's batches, already in memory, and a whole evaluation as in a round (reading images,
forward passes, suppression, matching, metrics). Prints the median of each and of their ratio.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from federated_yolo.common.environment import prepare_environment, remove_private_settings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    prepare_environment()  # before Ultralytics is imported
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))
    remove_private_settings()


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Forward passes and evaluations, one after the other."""
    import torch

    from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
    from federated_yolo.yolo.checkpoint import load_checkpoint_module
    from federated_yolo.yolo.evaluator import Evaluator

    torch.set_num_threads(1)
    data = read_data_yaml(options.data, where="data")
    write_private_yaml(data, folder)
    model = load_checkpoint_module(options.model, where="model").float()
    evaluate = Evaluator(data, str(model.task), {"imgsz": options.imgsz}, folder)
    result = evaluate(model)
    fused = copy.deepcopy(model).eval().fuse(verbose=False)  # pyright: ignore[reportCallIssue]
    batches = [batch["img"].float() / 255 for batch in evaluate.loader(model, "val")]

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                fused(batch)

    forward()
    pairs = [(seconds(forward), seconds(lambda: evaluate(model))) for _ in range(options.repeats)]
    print(f"{result.num_examples} images of {options.imgsz} px, {options.repeats} repeats")
    print(f"forward passes  {statistics.median(a for a, _ in pairs):6.2f} s")
    print(f"evaluation      {statistics.median(b for _, b in pairs):6.2f} s")
    print(f"ratio           {statistics.median(b / a for a, b in pairs):6.2f}")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
