"""What a SuperNode's node config says, and what an error may tell outside of the site."""

from pathlib import Path
from typing import Any

import pytest

from utils.config import InputError
from utils.site import is_site, paths_at, read_site, without_paths


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
        ({"data": "/Jane Doe/d.yaml"}, "no 'name', and that of the data's folder has more than"),
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
        ("\\\\host\\scans\\p.jpg: broken", "(a path): broken"),
        ("2 of 3 images/s, and/or none", "2 of 3 images/s, and/or none"),
        ("ValueError: found 3.5 of 4.txt, none good", "ValueError: (a path), none good"),
        ("site 'n': train: Jane: Doe, [1].png: broken", "site 'n': train: (a path): broken"),
        ("site 'n': val: /s/Jane's \"x\" (1), 2; 3.TIF: broken", "site 'n': val: (a path): broken"),
        ("Error: Jane Doe/scan.jpg: broken", "(a path): broken"),
        ("no such folder /srv/Jane, Doe", "no such folder (a path)"),
        ("a.jpg and /srv/Jane, Doe", "(a path) and (a path)"),
        (
            "CUDA out of memory. Tried to allocate 2.5 GiB",
            "CUDA out of memory. Tried to allocate 2.5 GiB",
        ),
    ],
)
def test_no_path_leaves_a_site(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_paths_that_a_site_names_itself_leave_the_rest_of_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "Jane, Doe's"
    folder.mkdir()
    (folder / "data.yaml").write_text("path: /mnt/old scans, 2\ntrain: images\n")
    node_config = {"data": f"{folder}/data.yaml", "name": "n", "folder": f"{folder}/kept"}
    known = paths_at(node_config)
    assert without_paths(f"{folder}/kept holds no images", known) == "(a path) holds no images"
    assert without_paths("/mnt/old scans, 2 is no folder", known) == "(a path) is no folder"
    text = f"site 'n' ({folder}/data.yaml): val: {folder}/kept/hang.txt says where it stood"
    assert without_paths(text, known) == "site 'n' ((a path)): val: (a path) says where it stood"
