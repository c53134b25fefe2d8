"""Schemes, on numbers: whose client an image is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_yolo.partitioning.schemes import NO_CLASS, SCHEMES, Images, _deal, rarest_classes


def images_of(classes: list[int], groups: list[str] | None = None) -> Images:
    return Images(np.array(classes, int), groups or ["all"] * len(classes))


def owners_by(
    scheme: str, images: Images, num_clients: int, alpha: float = 0.3, seed: int = 0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return SCHEMES[scheme](images, num_clients, alpha, rng)(images)


@st.composite
def any_images(draw: st.DrawFn) -> tuple[Images, int]:
    """Images of up to 5 classes, some without, each in a group; and a number of clients."""
    num_clients = draw(st.integers(1, 5))
    classes = draw(st.lists(st.integers(NO_CLASS, 4), min_size=num_clients, max_size=40))
    numbers = draw(st.lists(st.integers(0, 9), min_size=len(classes), max_size=len(classes)))
    # The first ones make sure that there are enough groups.
    numbers[:num_clients] = range(num_clients)
    return images_of(classes, [f"camera {number}" for number in numbers]), num_clients


@settings(max_examples=40, deadline=None)
@given(case=any_images(), alpha=st.sampled_from([0.001, 0.3, 1000.0]), seed=st.integers(0, 99))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_image_has_one_client_and_the_same_seed_gives_the_same(
    scheme: str, case: tuple[Images, int], alpha: float, seed: int
) -> None:
    images, num_clients = case
    owners = owners_by(scheme, images, num_clients, alpha, seed)
    assert owners.shape == (len(images),)
    assert set(owners.tolist()) <= set(range(num_clients))
    np.testing.assert_array_equal(owners, owners_by(scheme, images, num_clients, alpha, seed))
    sizes = np.bincount(owners, minlength=num_clients)
    if scheme in ("iid", "dirichlet"):
        assert sizes.max() - sizes.min() <= 1
    if scheme in ("iid", "dirichlet", "quantity", "group"):
        assert sizes.min() >= 1
    if scheme == "group":
        pairs = set(zip(images.groups, owners.tolist(), strict=True))
        assert len(pairs) == len(set(images.groups))


def test_another_seed_gives_another_split() -> None:
    images = images_of([0, 1, 2] * 20)
    for scheme in ("iid", "dirichlet", "quantity"):
        first, second = (owners_by(scheme, images, 3, seed=seed) for seed in (0, 1))
        assert (first != second).any(), scheme


def test_an_image_counts_under_its_class_that_is_on_the_fewest_images() -> None:
    # Class 0 is on 3 images, class 1 on 2 (though it has most objects), class 2 on 1.
    train = [np.array(x, int) for x in ([0, 0, 1, 1, 1, 1], [0, 1], [0, 2], [], [3])]
    found = rarest_classes(train, [*train, np.array([0, 0])], num_classes=4)
    assert found.tolist() == [1, 1, 2, NO_CLASS, 3, 0]


def test_shares_are_rounded_and_nobody_goes_without() -> None:
    rng = np.random.default_rng(0)

    def sizes(num_images: int, *shares: float) -> list[int]:
        return np.bincount(_deal(num_images, np.array(shares), rng), minlength=len(shares)).tolist()

    assert sizes(10, 0.5, 0.3, 0.2) == [5, 3, 2]
    assert sizes(11, 0.5, 0.3, 0.2) == [6, 3, 2]  # of 5.5, 3.3 and 2.2 the first lost most
    assert sizes(10, 1.0, 0.0, 0.0) == [8, 1, 1]
    assert sizes(2, 1.0, 0.0, 0.0) == [1, 1, 0]


def test_a_small_alpha_gives_each_client_classes_of_its_own_and_a_large_one_the_common_mix() -> (
    None
):
    images = images_of([0, 1, 2, 3] * 50)

    def largest_share(alpha: float) -> float:
        """Of one class in a client's images, mean over 4 clients and 20 seeds."""
        shares = []
        for seed in range(20):
            owners = owners_by("dirichlet", images, 4, alpha, seed)
            shares += [np.bincount(images.classes[owners == i]).max() / 50 for i in range(4)]
        return float(np.mean(shares))

    assert largest_share(1000) < 0.37  # 0.25 but for chance
    assert 0.45 < largest_share(0.3) < 0.85
    assert largest_share(0.001) > 0.6  # two clients that want the same class share it


def test_a_client_of_one_class_gets_it_until_it_has_run_out() -> None:
    class OneClassEach:
        """Draws the mixes [1, 0] and [0, 1], and then as NumPy does."""

        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def dirichlet(self, alpha: np.ndarray, size: int) -> np.ndarray:
            np.testing.assert_allclose(alpha, [1.5, 0.5])  # 2 times the mix of all images
            return np.eye(2)

        def __getattr__(self, name: str) -> object:
            return getattr(self.rng, name)

    images = images_of([0] * 6 + [1] * 2)
    assign = SCHEMES["dirichlet"](images, 2, 2.0, OneClassEach())  # pyright: ignore[reportArgumentType]
    owners = assign(images)
    assert owners[6:].tolist() == [1, 1]
    assert np.bincount(owners).tolist() == [4, 4]
    # What only the val split has comes last, and to whoever's turn it is.
    assert sorted(assign(images_of([2, 2])).tolist()) == [0, 1]


def test_quantity_gives_different_numbers_in_the_same_shares_of_train_and_val() -> None:
    assign = SCHEMES["quantity"](images_of([]), 3, 0.3, np.random.default_rng(0))
    train, val = (np.bincount(assign(images_of([0] * n)), minlength=3) for n in (1000, 100))
    assert train.max() > 2 * train.min()
    assert np.abs(train / 10 - val).max() <= 2  # but for rounding, and one for everybody


def test_each_class_has_one_client_and_clients_are_filled_evenly() -> None:
    # 5 to client 0, 3 and 2 to client 1, the last one to the first of two with five.
    images = images_of([0] * 5 + [1] * 3 + [2] * 2 + [3])
    owners = owners_by("class", images, 2)
    assert owners.tolist() == [0] * 5 + [1] * 5 + [0]


def test_with_more_clients_than_classes_a_class_is_shared_equally() -> None:
    owners = owners_by("class", images_of([7] * 6 + [2] * 4 + [NO_CLASS] * 5), 5)
    assert np.bincount(owners[:6], minlength=5).tolist() == [2, 0, 2, 0, 2]
    assert np.bincount(owners[6:10], minlength=5).tolist() == [0, 2, 0, 2, 0]
    assert np.bincount(owners[10:], minlength=5).tolist() == [1] * 5


def test_groups_stay_whole_and_new_ones_of_val_go_where_fewest_are() -> None:
    train = images_of([0] * 11, ["a"] * 5 + ["b"] * 3 + ["c"] * 3)
    assign = SCHEMES["group"](train, 2, 0.3, np.random.default_rng(0))
    assert assign(train).tolist() == [0] * 5 + [1] * 6
    val = images_of([0] * 6, ["c", "c", "c", "a", "new", "newer"])
    assert assign(val).tolist() == [1, 1, 1, 0, 0, 0]
