"""Names of the entries in messages, and conversion of arrays to and from Flower's records."""

import math
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord

from federated_yolo.common.arrays import Arrays

CLIENT_ERROR = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
MAX_ATTEMPTS = 2  # a client's attempts at one message; its worker process may die

LACKS_ARRAYS, UNCHANGED = "lacks-arrays", "unchanged"  # in the "client" record of a reply


def to_record(arrays: Arrays) -> ArrayRecord:
    """Convert named arrays to a Flower record, which keeps names, shapes and dtypes."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Return the named arrays of a Flower record as copies."""
    return {name: array.numpy() for name, array in record.items()}


EXAMPLES_KEY = "num-examples"  # Flower's name for an update's weight
LOSS_KEY = "train_loss"  # sum of an update's losses, by which q-FedAvg weights clients
STEPS_KEY = "num-steps"


def views(record: ArrayRecord) -> Arrays:
    """Return a record's arrays as read-only views of its bytes, without a copy.

    Flower's `Array.numpy` makes a copy. Raises ValueError for bytes that are not one array's .npy.
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


@lru_cache(maxsize=1024)  # a model has few different headers, and parsing is slower than adding
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(BytesIO(header))
