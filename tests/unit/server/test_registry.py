"""Sites that say what cannot be, or what does not fit the others, are not taken."""

from dataclasses import replace
from typing import Any

import pytest

from federated_yolo.data.summary import DataSummary
from federated_yolo.protocol.handshake import Hello, Introduction, hello
from federated_yolo.server.registry import ClientRegistry, Unfit

SUMMARY = DataSummary(names=("a", "b"), num_train=4, num_val=2, num_test=0, class_counts=(3, 1))


def test_a_site_that_goes_before_the_start_holds_up_nobody() -> None:
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    registry._take(1, Introduction(name="trial", summary=replace(SUMMARY, channels=1)))
    south = Introduction(name="south", summary=SUMMARY)
    with pytest.raises(Unfit, match="channels 3, 'trial' has 1"):
        registry._take(2, south)
    registry.online.clear()
    registry.forget_absent()
    registry._take(2, south)
    assert registry.present == ["south"]


def test_a_site_that_comes_back_with_more_images_counts_with_those_of_its_start() -> None:
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    registry._take(1, Introduction(name="north", summary=SUMMARY))
    registry.remember_summaries()
    registry.online.clear()
    registry._take(2, Introduction(name="north", summary=replace(SUMMARY, num_train=4000)))
    registry.remember_summaries()
    assert registry.present == ["north"]
    assert registry.at_start["north"].num_train == SUMMARY.num_train


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"names": ()}, "names: expected 1 to 10000"),
        ({"names": ("a", "a")}, "names: expected 1 to 10000, each once"),
        ({"names": ("a", " ")}, "not blank"),
        ({"class_counts": (3,)}, "boxes: expected a count for each class"),
        ({"class_counts": (3, -1)}, "boxes: expected a count for each class"),
        ({"num_train": 0}, "images: expected at least one to train"),
        ({"num_train": 10**400}, "images: expected at least one to train"),
        ({"num_val": -5}, "images: expected at least one to train"),
        ({"num_train": 2**29 + 1}, "at most 536870912"),  # a mean would not be exact any more
        ({"val_classes": ("z",)}, "val and test: expected classes of its own"),
        ({"channels": 10**7}, "channels: expected 1 to 1024"),
        ({"kpt_shape": (17, 10**6)}, "kpt_shape: expected two small numbers"),
        ({"flip_idx": (0, 1)}, "keypoints: expected a flip_idx"),  # of no keypoints
        ({"kpt_shape": (2, 3), "flip_idx": (1, 1)}, "keypoints: expected a flip_idx"),
        ({"kpt_shape": (2, 3), "kpt_oks_sigmas": (1.0, -1.0)}, "keypoints: expected"),
        ({"kpt_shape": (2, 3), "kpt_names": (("x", "y"),)}, "keypoints: expected"),
        ({"kpt_shape": (2, 3), "kpt_names": (("x",), ())}, "keypoints: expected"),
        ({"kpt_shape": (2, 3), "kpt_names": (("x", "y" * 101), ())}, "keypoints: expected"),
    ],
)
def test_a_site_that_says_what_cannot_be_is_refused_and_shapes_nothing(
    lie: dict[str, Any], reason: str
) -> None:
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    with pytest.raises(Unfit, match=reason):
        registry._take(7, Introduction(name="liar", summary=replace(SUMMARY, **lie)))
    assert not registry.clients
    registry._take(8, Introduction(name="north", summary=SUMMARY))
    assert registry.present == ["north"]


def test_a_site_without_a_label_of_the_selected_classes_is_refused() -> None:
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    registry.names, registry.classes = ("a", "b"), ("b",)
    summary = replace(SUMMARY, val_classes=("a",))
    with pytest.raises(Unfit, match=r"SuperNode 'north': val: no label is of \[b\], the classes"):
        registry._take(7, Introduction(name="north", summary=summary))
    registry._take(8, Introduction(name="north", summary=replace(summary, val_classes=("b",))))
    assert registry.present == ["north"]


def test_a_site_that_means_other_keypoints_than_one_that_is_there_is_refused() -> None:
    registry = ClientRegistry([], hello("pose"), is_open=True, has_sites=True)
    silent = replace(SUMMARY, kpt_shape=(2, 3))
    north = replace(silent, flip_idx=(1, 0), kpt_names=(("left", "right"), ()))
    south = replace(silent, names=("b", "a"), kpt_names=((), ("right", "left")))
    for node, (name, summary) in enumerate({"first": silent, "north": north}.items()):
        introduction = Introduction(name=name, summary=summary)
        registry._take(node, Introduction.from_json(introduction.to_json()))
    with pytest.raises(Unfit, match="'south': kpt_names of 'a': right for keypoint 0, 'north' has"):
        registry._take(7, Introduction(name="south", summary=south))
    registry._take(8, Introduction(name="south", summary=replace(south, kpt_names=())))
    with pytest.raises(Unfit, match=r"'west': kpt_shape \(2, 2\), 'first' has \(2, 3\); all data"):
        registry._take(9, Introduction(name="west", summary=replace(SUMMARY, kpt_shape=(2, 2))))
    assert registry.present == ["first", "north", "south"]
    registry.online.remove(1)  # north, which is away now
    with pytest.raises(Unfit, match=r"'east': flip_idx: 0 for keypoint 0, 'north' has 1; all data"):
        registry._take(10, Introduction(name="east", summary=replace(silent, flip_idx=(0, 1))))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"show_images": 10**6}, "show-images: expected 0 to 16"),
        ({"not_annotated": ("z",)}, r"not-annotated: \['z'\] are none of its classes"),
    ],
)
def test_what_a_site_allows_must_make_sense_too(lie: dict[str, Any], reason: str) -> None:
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    with pytest.raises(Unfit, match=reason):
        registry._take(7, Introduction(name="liar", summary=SUMMARY, **lie))


@pytest.mark.parametrize("fraction", [1.0, 0.5, 5, [1.0, 0.5, 0], [3, 0.5]])
def test_a_site_hears_which_images_are_used(fraction: Any) -> None:
    """A count must not become a share: 5 images are not 500 %."""
    found = Hello.from_json(hello("detect", fraction).to_json()).fraction
    values = zip(*(x if isinstance(x, list) else [x] for x in (found, fraction)), strict=True)
    assert all((a, type(a)) == (b, type(b)) for a, b in values)
