"""Names of what messages hold, and arrays as Flower's records."""

import math
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord

from federated_yolo.common.arrays import Arrays

CLIENT_ERROR = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
MAX_ATTEMPTS = 2  # of a client at one message, whose worker may die

LACKS_ARRAYS, UNCHANGED = "lacks-arrays", "unchanged"  # in the "client" record of a reply


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as a Flower record, which keeps names, shapes and dtypes."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Named arrays of a Flower record."""
    return {name: array.numpy() for name, array in record.items()}


EXAMPLES_KEY = "num-examples"  # Flower's name for an update's weight
LOSS_KEY = "train_loss"  # sum of an update's losses, which q-FedAvg weighs clients by
STEPS_KEY = "num-steps"


def views(record: ArrayRecord) -> Arrays:
    """The arrays of a record as read-only views of its bytes, which are not copied.

    Flower's `Array.numpy` makes a copy. Raises ValueError for anything but the .npy of one array.
    """
    return {name: _view(name, array) for name, array in record.items()}


def _view(name: str, array: Array) -> np.ndarray:
    try:
        if array.stype != "numpy.ndarray" or array.data[:8] != b"\x93NUMPY\1\0":
            raise ValueError("expected the NumPy format, version 1.0")
        offset = 10 + int.from_bytes(array.data[8:10], "little")
        shape, fortran, dtype = _header(array.data[8:offset])
    except Exception as error:  # a header is parsed as Python, with errors of its tokenizer
        raise ValueError(f"{name}: not a readable array ({error})") from error
    num_bytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{name}: dtype {dtype} of shape {shape}, expected numbers")
    if offset + num_bytes != len(array.data):
        raise ValueError(f"{name}: {len(array.data) - offset} bytes, expected {num_bytes}")
    flat = np.frombuffer(array.data, dtype, math.prod(shape), offset)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=1024)  # a model's arrays have few, and parsing takes longer than adding
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(BytesIO(header))
