"""What a SuperNode's node config says, and what an error may tell outside of the site."""

from pathlib import Path
from typing import Any

import pytest

from utils.config import InputError
from utils.site import is_site, read_site, without_paths


def test_a_site_is_named_after_its_folder_and_keeps_to_itself_by_default(tmp_path: Path) -> None:
    site = read_site({"data": str(tmp_path / "north" / "data.yaml")})
    assert site.name == "north"
    assert site.data == tmp_path / "north" / "data.yaml"
    assert site.folder == Path.home() / ".federated-yolo" / "north"
    assert (site.show_images, site.share_model, site.num_threads) == (0, False, None)


def test_the_folder_of_a_classifier_names_its_site_itself(tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    assert read_site({"data": str(tmp_path / "north")}).name == "north"


def test_all_keys_of_a_node_config_are_read() -> None:
    node_config: dict[str, Any] = {
        "data": "/srv/data.yaml",
        "name": "south",
        "folder": "/srv/private",
        "not-annotated": "helmet, safety vest",
        "show-images": 4,
        "share-model": True,
        "num-threads": 2,
    }
    site = read_site(node_config)
    assert site.not_annotated == ("helmet", "safety vest")
    assert (site.folder, site.show_images) == (Path("/srv/private"), 4)
    assert (site.share_model, site.num_threads) == (True, 2)


@pytest.mark.parametrize(
    ("node_config", "expected"),
    [
        ({}, "no 'data'; start the SuperNode with --node-config"),
        ({"data": "/d.yaml", "nam": "x"}, "nam: unknown; did you mean 'name'?"),
        ({"data": 3}, "data: found 3, expected the path of a data.yaml"),
        ({"data": "/d.yaml", "name": "../up"}, "name: found '../up', expected letters"),
        ({"data": "/d/d.yaml", "show-images": 17}, "show-images: found 17, expected a whole"),
        ({"data": "/d/d.yaml", "num-threads": 0}, "num-threads: found 0, expected a whole"),
        ({"data": "/d/d.yaml", "share-model": 1}, "share-model: found 1, expected true or false"),
    ],
)
def test_a_wrong_node_config_is_refused(node_config: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        read_site(node_config)
    assert expected in str(error.value)


def test_nodes_of_a_simulation_are_no_sites_unless_they_have_data() -> None:
    assert not is_site({"partition-id": 0, "num-partitions": 2})
    assert is_site({"partition-id": 0, "data": "/d.yaml"})
    assert is_site({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(/srv/site/data.yaml): train: broken", "((a path)): train: broken"),
        ("train: /srv/Jane Doe/a b.jpg: no image", "train: (a path): no image"),
        ("No such file: '/home/x y/p.jpg'", "No such file: '(a path)'"),
        ("see ~/scans/p.jpg", "see (a path)"),
        ("see ../scans/p.jpg", "see (a path)"),
        ("C:\\scans\\p.jpg: broken", "(a path): broken"),
        ("2 of 3 images/s, and/or none", "2 of 3 images/s, and/or none"),
    ],
)
def test_no_path_leaves_a_site(text: str, expected: str) -> None:
    assert without_paths(text) == expected
