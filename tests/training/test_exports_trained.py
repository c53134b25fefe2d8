"""A federation of exports trains as one of the data sets that they were made from."""

from pathlib import Path

from as_exports import as_coco
from local_grid import LocalGrid
from recipes import make_dataset
from sites import run, sites
from trainings import TRAIN, assert_identical, federation, final_arrays


def test_exports_train_to_the_same_bits(tmp_path: Path) -> None:
    plain = [make_dataset(tmp_path / f"c{n}", num_train=4, num_val=2, seed=n) for n in range(2)]
    exports = [plain[0], as_coco(plain[1], tmp_path / "coco")]
    expected = federation(plain, tmp_path / "plain", TRAIN, num_rounds=2)
    found = federation(exports, tmp_path / "exports", TRAIN, num_rounds=2)
    assert_identical(final_arrays(found), final_arrays(expected))


def test_a_site_may_have_an_export(tmp_path: Path) -> None:
    grid = sites(tmp_path, "north", "south")
    as_coco(tmp_path / "south" / "data.yaml", tmp_path / "coco")
    plain, _ = run(grid, tmp_path, evaluate={"every": 0})
    mixed = LocalGrid(
        2,
        sites=[
            {"data": str(tmp_path / data), "name": name, "num-threads": 1}
            | {"folder": str(tmp_path / "private2" / name)}
            for name, data in (("north", "north/data.yaml"), ("south", "coco"))
        ],
    )
    found, _ = run(mixed, tmp_path, evaluate={"every": 0})
    assert_identical(final_arrays(found), final_arrays(plain))
