"""What a change of the data on disk looks like, and what is said about it."""

import os
import shutil
from pathlib import Path

from recipes import make_dataset

from federated_yolo.data.changes import SplitState, split_signature, told_changes


def test_a_signature_tells_what_ultralytics_would_read_anew(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=3)
    images, labels = (data.parent / kind / "train" for kind in ("images", "labels"))
    seen = [split_signature(str(images))]
    assert split_signature(str(images)) == seen[0]

    def differs() -> bool:
        seen.append(split_signature(str(images)))
        return len(set(seen)) == len(seen)

    (labels / "0.txt").write_text("")
    assert differs()
    os.utime(images / "1.jpg", ns=(0, 1))
    assert differs()
    (images / "deep").mkdir()
    assert not differs()  # an empty folder
    seen.pop()
    shutil.move(images / "2.jpg", images / "deep" / "2.jpg")
    assert differs()
    images.rename(tmp_path / "gone")
    assert differs()
    images.mkdir()
    assert differs()


def test_what_is_told_compares_with_the_round_before_also_when_it_is_tried_again(
    tmp_path: Path,
) -> None:
    def told(round_number: int, signature: str, num_images: int, left_out: int = 0) -> str:
        now = SplitState(signature, num_images, None)
        return "; ".join(told_changes(tmp_path, "train", round_number, now, left_out))

    assert told(1, "a", 10) == ""
    assert told(2, "a", 10) == ""
    assert told(4, "b", 7) == "its train split has 7 images now, 10 before"
    assert told(4, "b", 7) == "its train split has 7 images now, 10 before"  # again
    assert told(4, "c", 1, 3) == (
        "its train split has 1 image now, 10 before; 3 more cannot be used and are left out"
    )
    assert told(5, "c", 1, 3) == ""
    assert told(6, "d", 1) == "its train split has changed, and has 1 image as before"
    (tmp_path / "splits.json").write_text("{")  # as after a power failure
    assert told(7, "e", 9) == ""
    assert told(8, "f", 8) == "its train split has 8 images now, 9 before"
