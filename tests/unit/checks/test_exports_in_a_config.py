"""Exports of annotation tools take the place of data sets in a config."""

import os
from pathlib import Path

import pytest
from as_exports import as_coco, as_labelimg
from config_files import load
from recipes import file_digests, make_dataset
from sound_configs import config_of, problems_of

from federated_yolo.checks.exports import FOLDER, prepare_data
from federated_yolo.checks.federation import checked


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "ordinary")


def test_exports_and_data_sets_are_the_clients_of_one_federation(
    data: Path, tmp_path: Path
) -> None:
    coco = as_coco(data, tmp_path / "coco")
    images = as_labelimg(data, tmp_path / "labelimg")
    before = [file_digests(coco), file_digests(images)]
    clients = {"north": data, "south": coco, "east": images}
    config = config_of(tmp_path, clients, val_fraction=0.4, evaluate={"data": str(coco)})
    with checked(config) as federation:
        assert federation.names == ("a", "b", "c")
        assert set(federation.made) == {"south", "east", "(server)"}
        assert federation.made["south"].source == str(coco)
        assert [s.num_train for s in federation.summaries.values()] == [6, 6, 4]
        assert [s.num_val for s in federation.summaries.values()] == [3, 3, 2]
        first, second, _ = federation.config.clients
        assert first.data == str(data)
        assert Path(second.data or "").is_relative_to(tmp_path / "runs" / FOLDER)
        assert federation.summaries["north"].class_counts == (
            federation.summaries["south"].class_counts
        )
    assert [file_digests(coco), file_digests(images)] == before


def test_what_was_made_is_used_again_until_the_export_changes(data: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, {"north": as_coco(data, tmp_path / "coco")})
    first, again = (prepare_data(config, "detect").config.clients[0].data for _ in range(2))
    assert first == again
    os.utime(tmp_path / "coco" / "annotations" / "instances_train.json", (1, 1))
    changed = prepare_data(config, "detect").config.clients[0].data
    assert changed != first
    assert prepare_data(config, "segment").problems["north"][0].endswith("or annotate them")
    # What a resumed run has in its args.yaml is an ordinary data set.
    resumed = config_of(tmp_path, {"north": Path(changed or "")})
    assert prepare_data(resumed, "detect").config == resumed


def test_all_problems_of_all_clients_come_at_once_and_name_the_users_files(
    data: Path, tmp_path: Path
) -> None:
    lone = as_coco(data, tmp_path / "lone", ["train"])
    damaged = as_coco(data, tmp_path / "damaged")
    (damaged / "images" / "train" / "0.jpg").write_bytes(b"no image")
    unknown = tmp_path / "unknown"
    (unknown / "stuff").mkdir(parents=True)
    clients = {"lone": lone, "damaged": damaged, "unknown": unknown}
    problems = problems_of(config_of(tmp_path, clients))
    assert len(problems) == 3
    assert problems[0].startswith(f"datasets[0] 'lone': {lone}")
    assert "without a val split; val_fraction=0.2" in problems[0]
    assert f"{damaged}/images/train/0.jpg" in problems[1]
    assert problems[2].startswith("datasets[2] 'unknown'")
    assert "found stuff/" in problems[2]
    assert not any(FOLDER in problem for problem in problems)


def test_a_damaged_image_of_an_export_of_label_files_is_named_as_the_users(
    data: Path, tmp_path: Path
) -> None:
    images = as_labelimg(data, tmp_path / "labelimg")
    (images / "0.txt").write_text("0 0.5 0.5 7 0.1\n")
    (problem,) = problems_of(config_of(tmp_path, {"north": images}, val_fraction=0.3))
    assert problem.startswith(f"datasets[0] 'north' ({images}): ")
    assert f"{images}/0.jpg: line 1" in problem


def test_val_fraction_is_a_share(tmp_path: Path) -> None:
    text = "base_model: yolo11n.yaml\ndatasets: [a/data.yaml]\n"
    assert load(tmp_path, text, "val_fraction=0.2").val_fraction == 0.2
    for wrong in ("0", "1", "20"):
        with pytest.raises(Exception, match="val_fraction"):
            load(tmp_path, text, f"val_fraction={wrong}")
