"""Which of Ultralytics' train arguments a federation sets itself, and which it checks."""

import math
from collections.abc import Callable
from typing import Any

from federated_yolo.common.errors import nearest

# Train arguments that the federation sets: name -> what to use instead, or the reason.
OWNED_TRAIN_ARGS = {
    "model": "use base_model",
    "data": "use datasets",
    "epochs": "use num_rounds and local_epochs; the schedule spans num_rounds * local_epochs",
    "task": "it comes from base_model",
    "mode": "a federation always trains",
    "seed": "use seed",
    "device": "use client_resources: each client trains on one GPU (num_gpus: 0 on the CPU), and "
    "those at work at once share out all GPUs there are",
    "project": "use save_dir",
    "name": "use name",
    "exist_ok": "every run gets a directory of its own",
    "save_dir": "use save_dir",
    "save": "every round is saved",
    "save_period": "every round is saved",
    "resume": "the command resume RUN_DIR goes on with a run that was stopped",
    "time": "use num_rounds",
    "patience": "use patience, which counts rounds without a better score",
    "val": "use evaluate.every",
    "split": "clients are evaluated on their val split",
    "plots": "report.html shows the run",
    "verbose": "use verbose",
    "cfg": "write the train arguments here",
    "profile": "export the model and profile that",
    "compile": "compiled models are not supported in a federation",
    "distill_model": "distillation is not supported in a federation",
    "quantize": "quantisation-aware training is not supported; export with quantize=... instead",
    "save_json": "not available in a federation",
}
# Arguments of predict, track and export, and Python objects that no YAML can hold.
NOT_TRAIN_ARGS = frozenset(
    "source vid_stride stream_buffer visualize retina_masks embed show save_frames save_txt "
    "save_conf save_crop show_labels show_conf show_boxes line_width format optimize dynamic "
    "simplify opset workspace dnn tracker augmentations".split()
)


def _is_layer(value: Any) -> bool:
    """Whether a value is the number of a layer, or the name of a part of one."""
    return (type(value) is int and value >= 0) or (isinstance(value, str) and bool(value))


# Train arguments that Ultralytics does not check, or only while it trains.
CHECKED_TRAIN_ARGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch": (
        lambda x: type(x) is int and 1 <= x <= MAX_BATCH,
        "a whole number of images, from 1 to 65536; AutoBatch (batch=-1) would give every client "
        "another batch size",
    ),
    "imgsz": (
        lambda x: type(x) is int and 32 <= x <= 65536,
        "a whole number of pixels, at least 32",
    ),
    "workers": (
        lambda x: type(x) is int and 0 <= x <= MAX_WORKERS,
        "a whole number from 0 to 1024",
    ),
    "cache": (
        lambda x: x in (None, True, False, "ram"),
        "ram or false; 'disk' would write into the data folder",
    ),
    "optimizer": (
        lambda x: str(x).lower() in "auto sgd musgd adam adamax adamw nadam radam rmsprop".split(),
        "auto, SGD, MuSGD, Adam, Adamax, AdamW, NAdam, RAdam or RMSprop",
    ),
    "pretrained": (lambda x: isinstance(x, bool | str), "true, false or the path of a .pt"),
    "classes": (
        lambda x: x is None or all(type(i) is int for i in (x if isinstance(x, list) else [x])),
        "class indices, e.g. [0, 2]",
    ),
    "freeze": (
        lambda x: (
            x is None
            or (type(x) is int and x >= 0)
            or (isinstance(x, list) and all(_is_layer(layer) for layer in x))
        ),
        "a number of layers, or a list of layers and names, such as [0, 1, '22.cv2']",
    ),
    "auto_augment": (
        lambda x: x in (None, "", "randaugment", "autoaugment", "augmix"),
        "randaugment, autoaugment, augmix or null",
    ),
    "copy_paste_mode": (lambda x: x in ("flip", "mixup"), "flip or mixup"),
}
MAX_BATCH, MAX_WORKERS = 65536, 1024


def train_problems(train: dict[str, Any]) -> list[str]:
    """Describe train arguments that are unknown, set by the federation, wrong or without effect."""
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    known = [k for k in DEFAULT_CFG_DICT if k not in OWNED_TRAIN_ARGS and k not in NOT_TRAIN_ARGS]
    is_auto = str(train.get("optimizer", "auto")).lower() == "auto"
    problems = []
    for key, value in train.items():
        if key in OWNED_TRAIN_ARGS:
            problems.append(f"train.{key}: set by the federation; {OWNED_TRAIN_ARGS[key]}")
        elif key in NOT_TRAIN_ARGS:
            problems.append(f"train.{key}: not a train argument; remove it")
        elif key not in known:
            near = nearest(key, [*known, *OWNED_TRAIN_ARGS])
            problems.append(f"train.{key}: unknown Ultralytics argument{near}")
        elif key in CHECKED_TRAIN_ARGS and not CHECKED_TRAIN_ARGS[key][0](value):
            expected = CHECKED_TRAIN_ARGS[key][1]
            problems.append(f"train.{key}: found {value!r}, expected {expected}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"train.{key}: found {value}, expected a finite number")
        else:
            try:
                check_cfg({key: value})
            except (TypeError, ValueError) as error:
                problems.append(f"train.{key}: {str(error).splitlines()[0]}")
                continue
            if is_auto and key in ("lr0", "momentum"):
                problems.append(
                    f"train.{key}: has no effect with optimizer auto, which chooses it; set "
                    "train.optimizer too (AdamW, SGD, ...), or remove it"
                )
    return problems
