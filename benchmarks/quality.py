"""How good a federation's model is beside the model of the pooled data and of each client alone.

    python benchmarks/quality.py [--data BCCD] [--pretrained BACKBONE.pt] [--seeds 0 1 2]

Every run sees each image `--epochs` times, starts from the same base and is scored on the test
split after its last epoch, without choosing a best one:

centralised  `yolo train` on the pooled data, batch 16 and nbs 16 (with the default nbs of 64,
             which takes a quarter of the steps, it learns much less), and batch 5
local        `yolo train` on one client's data, batch 5: a client's share of 16 in the federation
federated    `python federated.py` with one round an epoch, for each of SETTINGS

Writes OUT/results.csv as it goes (a rerun continues there), and a table and a plot of it at the
end. `--masking` instead trains federations in which the platelets of one client are not labelled:
with that class left out of its loss, as background, and without those images; and of two clients.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from utils.environment import prepare_environment, remove_private_settings

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("iid3", "dirichlet03", "unequal_70_20_10")
# What is federated beside the defaults: name -> settings of federated.py.
SETTINGS: dict[str, list[str]] = {
    "defaults": [],
    "batch 16 each": ["train.batch=16"],
    "lr0 not scaled": ["train.batch=5"],
    "optimizer reset": ["local_optimizer=reset"],
    "server_ema 0.5": ["server_ema=0.5"],
    "batchnorm frozen": ["shared.batchnorm=frozen"],
    "fedavgm": ["strategy=fedavgm"],
    "fedadam": ["strategy=fedadam"],
    "fedyogi": ["strategy=fedyogi"],
    "fedprox": ["strategy=fedprox"],
    "fednova": ["strategy=fednova"],
}
MASKED = "Platelets"
ONE_AT_A_TIME = threading.Lock()
# How the data of these clients (by index) differ: name -> variant of `unannotated`, clients.
MASKING: dict[str, tuple[str, tuple[int, ...]]] = {
    "platelets left out of its loss": ("masked", (1,)),
    "platelets as background": ("background", (1,)),
    "without its images of platelets": ("without", (1,)),
    "two clients: left out of their loss": ("masked", (1, 2)),
    "two clients: as background": ("background", (1, 2)),
}


@dataclass(frozen=True)
class Job:
    """One training. kind: "centralised", "local" or "federated". data: of each client.

    settings: of federated.py, or the batch of a plain training.
    """

    kind: str
    name: str
    split: str
    seed: int
    data: tuple[str, ...]
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from the others in results.csv."""
        return (self.name, self.split, str(self.seed))


def main() -> None:
    """Run what is missing in OUT/results.csv, then write the table and the plot."""
    parser = make_parser(__doc__ or "", Path("runs/quality"))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument("--settings", nargs="+", default=["defaults"], choices=list(SETTINGS))
    parser.add_argument("--masking", action="store_true")
    parser.add_argument("--federated", action="store_true", help="leave out the plain trainings")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # a plain training in its own process
    options = parse(parser)
    if options.job:
        train_plainly(Job(**json.loads(options.job)), options)
        return
    prepare_environment()  # before Ultralytics is imported
    run_missing(masking_jobs(options) if options.masking else quality_jobs(options), options)
    rows = read_rows(options.out)
    print(markdown(rows))
    plot(rows, options.out / "quality.png")
    remove_private_settings()


def make_parser(description: str, out: Path) -> argparse.ArgumentParser:
    """The arguments of all benchmarks that train on BCCD. description: a module's docstring."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/bccd")
    parser.add_argument(
        "--pretrained",
        type=Path,
        default=ROOT.parent / "shared/weights/yolov8n-cls-imagenet-ft.pt",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with absolute paths."""
    options = parser.parse_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    options.pretrained = options.pretrained.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def quality_jobs(options: argparse.Namespace) -> list[Job]:
    """Everything that the table needs."""
    jobs = []
    pooled = (str(options.data / "all/data.yaml"),)
    for seed in options.seeds:
        jobs.append(Job("centralised", "centralised", "all", seed, pooled, ("16",)))
        for split in options.splits:
            clients = client_data(options.data, split)
            for index, path in enumerate(clients):
                jobs.append(Job("local", f"client_{index} alone", split, seed, (path,), ("5",)))
            for name in options.settings:
                settings = tuple(SETTINGS[name])
                jobs.append(Job("federated", name, split, seed, clients, settings))
    jobs += [
        Job("centralised", "centralised, batch 5", "all", seed, pooled, ("5",))
        for seed in options.seeds
    ]
    return [job for job in jobs if job.kind == "federated" or not options.federated]


def masking_jobs(options: argparse.Namespace) -> list[Job]:
    """Federations of iid3 in which one client or two did not annotate a class."""
    jobs = []
    for name, (variant, clients) in MASKING.items():
        data = list(client_data(options.data, "iid3"))
        settings = []
        for index in clients:
            folder = options.out / "data" / f"{variant}-{index}"
            data[index] = str(unannotated(Path(data[index]), folder, variant))
            if variant == "masked":
                settings.append(f"datasets.{index}.not_annotated=[{MASKED}]")
        jobs += [
            Job("federated", name, "iid3", seed, tuple(data), tuple(settings))
            for seed in options.seeds
        ]
    return jobs


def client_data(data: Path, split: str) -> tuple[str, ...]:
    """The data.yaml of each client."""
    return tuple(str(path) for path in sorted((data / "fed" / split).glob("*/data.yaml")))


def unannotated(source: Path, folder: Path, variant: str) -> Path:
    """A copy of a client's data without labels of MASKED, or without the images that have any."""
    from utils.data import read_data_yaml

    data = read_data_yaml(source, where="data")
    masked = next(index for index, name in data["names"].items() if name == MASKED)
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for line in Path(data["train"]).read_text().split():
        image = (Path(data["train"]).parent / line).resolve()
        label = image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"
        rows = label.read_text().splitlines()
        others = [row for row in rows if int(row.split()[0]) != masked]
        if variant == "without" and len(others) < len(rows):
            continue
        (folder / "images" / image.name).symlink_to(image)
        (folder / "labels" / label.name).write_text("".join(f"{row}\n" for row in others))
    path = folder / "data.yaml"
    path.write_text(
        yaml.safe_dump({**data, "train": str(folder / "images"), "names": data["names"]})
    )
    return path


def run_missing(jobs: Iterable[Job], options: argparse.Namespace) -> None:
    """Run plain trainings two at a time, one thread each, then federations, of two workers."""
    done = {(row["name"], row["split"], row["seed"]) for row in read_rows(options.out)}
    jobs = [job for job in jobs if job.key not in done]
    plain = [job for job in jobs if job.kind != "federated"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: run_job(job, options), plain))
    for job in jobs:
        if job.kind == "federated":
            run_job(job, options)


def run_job(job: Job, options: argparse.Namespace) -> None:
    """Train in a process of its own, score the weights, append to results.csv."""
    started = time.perf_counter()
    folder = options.out / "runs" / "-".join(job.key).replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = federated_command(job, folder, options)
    if job.kind != "federated":
        command = [sys.executable, __file__, *sys.argv[1:], "--job", json.dumps(vars(job))]
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{job.key} failed, see {log}")
    seconds = time.perf_counter() - started
    with ONE_AT_A_TIME:  # libraries set themselves up on first use, and results.csv is one file
        row = {
            "name": job.name,
            "kind": job.kind,
            "split": job.split,
            "seed": job.seed,
            **mean_score(models_of(folder / "run"), options, folder),
            "seconds": round(seconds, 1),
        }
        append(row, options.out)
    for path in [*(folder / "run").rglob("*.npz"), *(folder / "run" / "clients").glob("*/*")]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "last.pt":
            path.unlink(missing_ok=True)
    print(json.dumps(row), flush=True)


def federated_command(job: Job, folder: Path, options: argparse.Namespace) -> list[str]:
    """`python federated.py` with a config for this job."""
    config: dict[str, Any] = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": f"client_{i}", "data": path} for i, path in enumerate(job.data)],
        "num_rounds": options.epochs,
        "save_dir": str(folder),
        "name": "run",
        "seed": job.seed,
        "train": {"imgsz": options.imgsz, "pretrained": str(options.pretrained)},
        "evaluate": {"every": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, str(ROOT / "federated.py"), str(path), *job.settings]


def train_plainly(job: Job, options: argparse.Namespace) -> None:
    """`yolo train` as it is, but for the private label caches of its data set."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_environment()
    import torch
    from ultralytics import YOLO

    from utils.environment import ensure_torchvision_nms

    ensure_torchvision_nms()
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
    model.train(
        trainer=private_trainer(Path.cwd() / "caches"),
        data=job.data[0],
        pretrained=str(options.pretrained),
        epochs=options.epochs,
        imgsz=options.imgsz,
        seed=job.seed,
        batch=int(job.settings[0]),
        nbs=int(job.settings[0]),
        val=False,  # only after the last epoch: no choice of a best one
        plots=False,
        device="cpu",
        project=str(Path.cwd()),
        name="run",
        exist_ok=True,
    )
    remove_private_settings()


def private_trainer(caches: Path) -> type:
    """Ultralytics' trainer, which writes its label caches to this folder and not beside the data.

    Several trainings read the same data at once here, and each would rewrite the other's cache.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    from utils.data import build_dataset

    class Trainer(DetectionTrainer):
        def build_dataset(self, img_path: Any, mode: str = "train", batch: Any = None) -> Any:
            model: Any = self.model
            stride = max(int(model.stride.max()), 32)
            return build_dataset(self.args, img_path, batch, self.data, mode, stride, caches)

    return Trainer


def models_of(run: Path) -> list[Path]:
    """The last model of a run; where parts of it stay with the clients, that of each."""
    weights = run / "weights" / "last.pt"
    return [weights] if weights.exists() else sorted(run.glob("clients/*/last.pt"))


def mean_score(models: list[Path], options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Means of the metrics of several models."""
    scores = [score(path, options, folder) for path in models]
    return {name: round(statistics.mean(s[name] for s in scores), 4) for name in scores[0]}


def score(weights: Path, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Metrics of a .pt on the test split, as `yolo val split=test` gives them."""
    from utils.data import read_data_yaml, write_private_yaml
    from utils.evaluation import Evaluator
    from utils.model import load_checkpoint_module

    data = read_data_yaml(options.data / "all/data.yaml", where="data")
    data["val"] = data["test"]
    write_private_yaml(data, folder / "test")
    evaluator = Evaluator(data, "detect", {"imgsz": options.imgsz}, folder / "test")
    result = evaluator(load_checkpoint_module(str(weights), where="weights").float())
    return {
        "mAP50": round(result.metrics["metrics/mAP50(B)"], 4),
        "mAP50-95": round(result.metrics["metrics/mAP50-95(B)"], 4),
        **{
            name.removeprefix("class/").replace("/", " "): round(value, 4)
            for name, value in result.per_class.items()
        },
    }


def read_rows(out: Path) -> list[dict[str, str]]:
    """What has been measured so far."""
    path = out / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, Any], out: Path) -> None:
    """Add a row to results.csv."""
    path = out / "results.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def markdown(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation over seeds, and the ratio to centralised."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["split"], row["name"]].append(row)
    reference = [float(r["mAP50-95"]) for r in groups.get(("all", "centralised"), [])]
    lines = [
        f"| data | run | mAP50 | mAP50-95 | × centralised | {MASKED} mAP50 | seeds | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = {"centralised": 0, "local": 1, "federated": 2}
    for (split, name), group in sorted(
        groups.items(), key=lambda item: (item[0][0], order[item[1][0]["kind"]], item[0][1])
    ):
        fields = [split, name, spread(group, "mAP50"), spread(group, "mAP50-95")]
        ratio = statistics.mean(float(r["mAP50-95"]) for r in group)
        fields.append(f"{ratio / statistics.mean(reference):.3f}" if any(reference) else "")
        fields.append(spread(group, f"{MASKED} mAP50"))
        fields.append(str(len(group)))
        fields.append(f"{statistics.median(float(r['seconds']) for r in group):.0f}")
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)


def spread(group: list[dict[str, str]], column: str) -> str:
    """`.801 ± .004`: mean and sample standard deviation."""
    values = [float(row[column]) for row in group]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """A dot for each run, a bar at their mean; lines are the means of the centralised ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits = [s for s in dict.fromkeys(row["split"] for row in rows) if s != "all"]
    pooled: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "centralised":
            pooled[row["name"]].append(float(row["mAP50-95"]))
    figure = Figure(figsize=(3.4 * len(splits), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes_of = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(axes_of, splits, strict=True):
        names = sorted({r["name"] for r in rows if r["split"] == split})
        names.sort(key=lambda name: "alone" not in name)
        for position, name in enumerate(names):
            found = [r for r in rows if (r["split"], r["name"]) == (split, name)]
            y = [float(r["mAP50-95"]) for r in found]
            color = "C7" if "alone" in name else "C0"
            axes.plot([position] * len(y), y, "o", color=color, alpha=0.7)
            axes.plot(position, statistics.mean(y), "_", color=color, ms=22, mew=2.5)
        for name, values in pooled.items():
            y = statistics.mean(values)
            axes.axhline(y, color="black", lw=1.2, ls="--" if name == "centralised" else ":")
            axes.annotate(name, (1.5, y), ha="center", va="bottom", fontsize=8)
        labels = ["federated" if name == "defaults" else name for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_title(split, fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes_of[0].set_ylabel("test mAP50-95", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
