"""Named arrays: what makes a layout, what does not fit it, and casting back to it."""

import numpy as np
import pytest

from federated_yolo.common.arrays import (
    Arrays,
    Layout,
    cast_to,
    checksum,
    layout_problems,
    to_double,
)


@pytest.fixture
def arrays() -> Arrays:
    """A layer as in a state_dict: a weight, a running mean, and a 0-d batch counter."""
    return {
        "conv.weight": np.array([[1.5, -2], [0.25, 3]], np.float32),
        "bn.running_mean": np.array([0.5, -0.5], np.float32),
        "bn.num_batches_tracked": np.array(7, np.int64),
    }


def test_a_layout_has_names_shapes_and_dtypes_in_order(arrays: Arrays) -> None:
    layout = Layout.of(arrays)
    assert layout.entries == (
        ("conv.weight", (2, 2), "float32"),
        ("bn.running_mean", (2,), "float32"),
        ("bn.num_batches_tracked", (), "int64"),
    )
    assert layout.names == ["conv.weight", "bn.running_mean", "bn.num_batches_tracked"]


def test_the_digest_is_the_same_on_every_machine_and_in_every_version(arrays: Arrays) -> None:
    # sha256 of [["conv.weight", [2, 2], "float32"], ["bn.running_mean", [2], "float32"],
    # ["bn.num_batches_tracked", [], "int64"]]
    expected = "1948c74ca0523b2e645a392e89787a86ad06bea621b19095772c9f056e1d4bdb"
    assert Layout.of(arrays).digest == expected


def test_the_digest_does_not_depend_on_values(arrays: Arrays) -> None:
    other = {name: np.zeros_like(array) for name, array in arrays.items()}
    assert Layout.of(other).digest == Layout.of(arrays).digest


def test_the_digest_depends_on_names_shapes_dtypes_and_order(arrays: Arrays) -> None:
    weight = arrays["conv.weight"]
    variants = [
        arrays,
        {("other" if name == "conv.weight" else name): a for name, a in arrays.items()},
        {**arrays, "conv.weight": weight.reshape(4)},
        {**arrays, "conv.weight": weight.reshape(4, 1)},
        {**arrays, "conv.weight": weight.astype(np.float16)},
        dict(reversed(arrays.items())),
        {name: a for name, a in arrays.items() if name != "conv.weight"},
    ]
    assert len({Layout.of(variant).digest for variant in variants}) == len(variants)


def test_arrays_fit_their_own_layout_in_any_order(arrays: Arrays) -> None:
    layout = Layout.of(arrays)
    assert layout_problems(arrays, layout) == []
    assert layout_problems(dict(reversed(arrays.items())), layout) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("conv.weight", np.zeros((2, 3), np.float32), "shape (2, 3), expected (2, 2)"),
        ("conv.weight", np.zeros(4, np.float32), "shape (4,), expected (2, 2)"),
        ("conv.weight", np.array(1, np.float32), "shape (), expected (2, 2)"),
        ("conv.weight", np.zeros((1, 1), np.float32), "shape (1, 1), expected (2, 2)"),
        ("bn.num_batches_tracked", np.array([7]), "shape (1,), expected ()"),
        ("conv.weight", np.zeros((2, 2)), "dtype float64, expected float32"),
        ("bn.num_batches_tracked", np.array(7.0), "dtype float64, expected int64"),
        (
            "conv.weight",
            np.array([[1, np.nan], [np.inf, 2]], np.float32),
            "2 of 4 values are NaN or infinite",
        ),
        ("bn.running_mean", np.array([-np.inf, 1], np.float32), "1 of 2 values are NaN or infini"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    arrays: Arrays, name: str, value: np.ndarray, expected: str
) -> None:
    (problem,) = layout_problems({**arrays, name: value}, Layout.of(arrays))
    assert problem.startswith(f"{name}: {expected}")


def test_missing_and_extra_arrays_are_named(arrays: Arrays) -> None:
    layout = Layout.of(arrays)
    renamed = {("head.weight" if n == "conv.weight" else n): a for n, a in arrays.items()}
    assert layout_problems(renamed, layout) == [
        "1 arrays missing: conv.weight",
        "1 arrays not in the model: head.weight",
    ]


def test_many_missing_arrays_are_counted() -> None:
    layout = Layout.of({f"x{i}": np.zeros(1) for i in range(5)})
    assert layout_problems({}, layout) == ["5 arrays missing: x0, x1, x2 and 2 more"]


def test_several_problems_are_all_reported(arrays: Arrays) -> None:
    wrong = {
        "conv.weight": np.full((2, 2), np.nan, np.float32),
        "bn.running_mean": np.zeros(3, np.float32),
        "extra": np.zeros(1),
    }
    problems = layout_problems(wrong, Layout.of(arrays))
    assert [problem.split(":")[0] for problem in problems] == [
        "1 arrays missing",
        "1 arrays not in the model",
        "conv.weight",
        "bn.running_mean",
    ]


def test_doubles_are_exact_copies(arrays: Arrays) -> None:
    doubles = to_double(arrays)
    assert {a.dtype.name for a in doubles.values()} == {"float64"}
    doubles["bn.running_mean"] += 1
    assert arrays["bn.running_mean"].tolist() == [0.5, -0.5]
    assert doubles["conv.weight"].tolist() == [[1.5, -2], [0.25, 3]]


def test_the_mean_of_ten_equal_models_is_the_model() -> None:
    x = np.array([0.1], np.float32)
    assert sum([x] * 10) / np.float32(10) != x  # in float32 it is 0.10000001
    total = sum(to_double({"x": x})["x"] for _ in range(10))
    assert cast_to({"x": np.asarray(total / 10)}, Layout.of({"x": x}))["x"] == x


def test_casting_there_and_back_changes_nothing(arrays: Arrays) -> None:
    layout = Layout.of(arrays)
    back = cast_to(to_double(arrays), layout)
    assert Layout.of(back) == layout
    assert checksum(back) == checksum(arrays)


def test_casting_keeps_0d_arrays_0d(arrays: Arrays) -> None:
    mean = {**to_double(arrays), "bn.num_batches_tracked": np.array(7.5) * 2}  # NumPy: a scalar
    back = cast_to(mean, Layout.of(arrays))["bn.num_batches_tracked"]
    assert isinstance(back, np.ndarray)
    assert (back.shape, back.dtype.name, int(back)) == ((), "int64", 15)


@pytest.mark.parametrize(
    ("mean", "expected"), [(6.999999, 7), (7.4, 7), (7.6, 8), (-1.6, -2), (2**53 - 1.0, 2**53 - 1)]
)
def test_integers_are_rounded_not_truncated(mean: float, expected: int) -> None:
    layout = Layout.of({"counter": np.array(0, np.int64)})
    assert int(cast_to({"counter": np.array(mean)}, layout)["counter"]) == expected


def test_casting_restores_the_order_and_drops_what_is_not_in_the_layout(arrays: Arrays) -> None:
    shuffled = {"momentum": np.zeros(3), **dict(reversed(arrays.items()))}
    assert list(cast_to(shuffled, Layout.of(arrays))) == list(arrays)


def test_the_checksum_sees_every_value_name_shape_and_dtype(arrays: Arrays) -> None:
    weight = arrays["conv.weight"]
    nearly = weight.copy()
    nearly[1, 1] = np.nextafter(nearly[1, 1], np.float32(9))
    variants = [
        arrays,
        {**arrays, "conv.weight": nearly},
        {**arrays, "conv.weight": weight.T},
        {**arrays, "conv.weight": weight.reshape(4)},
        {**arrays, "conv.weight": weight.view(np.int32)},
        {("other" if name == "conv.weight" else name): a for name, a in arrays.items()},
    ]
    assert len({checksum(variant) for variant in variants}) == len(variants)


def test_the_checksum_does_not_depend_on_the_memory_layout(arrays: Arrays) -> None:
    fortran = {**arrays, "conv.weight": np.asfortranarray(arrays["conv.weight"])}
    assert checksum(fortran) == checksum(arrays)
