"""What a SuperNode's node config says, and what an error may tell outside of the site."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from local_grid import LocalGrid
from recipes import make_dataset

from federated_yolo.app import client_app
from federated_yolo.client import app as client
from federated_yolo.client.redaction import paths_at, without_paths
from federated_yolo.client.site import is_site, read_site
from federated_yolo.common.errors import InputError
from federated_yolo.data.scan import check_dataset


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
        ({"data": "/d/d.yaml", "num-threads": 10**5}, "expected a whole number from 1 to 1024"),
        ({"data": "/d\0/d.yaml"}, "data: is no path (ValueError); expected the path of a data"),
        ({"data": "~nobody-here/d.yaml"}, "data: is no path (RuntimeError)"),
        ({"data": "/d/d.yaml", "folder": "~nobody-here"}, "folder: is no path (RuntimeError)"),
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


def test_what_says_nothing_of_the_site_stays() -> None:
    for text in (
        "no 'train'; a data.yaml has train, val and names",
        "none of the 6 images has a label; expected .txt files in a 'labels' folder",
        "line 1 (and 2 more) is no whole path, so it is looked for in the working directory",
        "line 3 of its label has 8 columns, expected 5: class, x, y, width, height",
        "no such folder; expected a folder with train/CLASS/*.jpg and val/CLASS/*.jpg",
        "client 'n' builds another model: its data.yaml has other channels or kpt_shape",
        "CUDA out of memory. See https://pytorch.org/docs/stable/notes/cuda.html#memory (PyTorch)",
    ):
        assert without_paths(text) == text


def test_a_path_that_the_site_names_itself_goes_only_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "Jane, Doe's"
    folder.mkdir()
    (folder / "data.yaml").write_text("path: /mnt/old scans, 2\nvalidation: images/Jane Doe\n")
    known = paths_at({"data": f"{folder}/data.yaml", "name": "n", "folder": f"{folder}/kept"})
    text = f"site 'n' ({folder}/data.yaml): val: {folder}/kept/hang.txt says where it stood"
    assert without_paths(text, known) == "site 'n' ((a path)): val: (a path) says where it stood"
    assert without_paths("'images/Jane Doe': empty", known) == "'(a path)': empty"
    assert (
        without_paths("not '/mnt/old scans, 2'; correct it", known) == "not '(a path)'; correct it"
    )
    for path in (f"{folder}_2/Jane", "/mnt/old scans, 2, Jane", f"{folder} Jane"):
        assert "Jane" not in without_paths(f"no such folder: '{path}'; correct it", known)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no data.yaml": (lambda d: (d / "data.yaml").unlink(), "expected an Ultralytics data.yaml"),
    "no names": (
        lambda d: (d / "data.yaml").write_text("train: images/train\nval: images/val"),
        "no 'names'; a data.yaml has train, val and names",
    ),
    "no YAML": (lambda d: (d / "data.yaml").write_text("train: [SECRET"), "line 1, column 15"),
    "no such folder": (
        lambda d: (d / "data.yaml").write_text("train: ../SECRET_2\nval: images/val\nnames: [a]"),
        "train: (a path) does not exist; expected at least one image",
    ),
    "no such folder of the val split": (
        lambda d: (d / "data.yaml").write_text("train: images/train\nval: ../SECRET_2\nnames: [a]"),
        "images not found, missing path '(a path)'; correct 'path', 'train' or 'val', or, if "
        "there is no val split, remove 'val' and set val_fraction=0.2",
    ),
    "a strange list": (
        lambda d: (d / "data.yaml").write_text("train: [SECRET, 3]\nval: images/val\nnames: [a]"),
        "train: found 3, expected a folder of images or a list of them",
    ),
    "no labels": (
        lambda d: [path.unlink() for path in (d / "labels/train").iterdir()],
        "expected .txt files in a 'labels' folder beside 'images'",
    ),
    "a damaged image": (
        lambda d: (d / "images/train/SECRET: 'a', b.jpg").write_bytes(b"no image"),
        "not readable as an image",
    ),
    "a wrong label": (
        lambda d: [
            (d / "images/train/0.jpg").rename(d / "images/train/SECRET: 'a', b.jpg"),
            (d / "labels/train/SECRET: 'a', b.txt").write_text("9 .5 .5 .1 .1"),
        ],
        "Label class 9 exceeds dataset class count",
    ),
    "a negative number in a label": (
        lambda d: (d / "labels/train/0.txt").write_text("0 .5 .5 .1 -0.7342"),
        "line 1 of its label has a negative number",
    ),
    "a fraction of a class": (
        lambda d: (d / "labels/train/0.txt").write_text("0.7342 .5 .5 .1 .1"),
        "begins with a class that is no whole number",
    ),
    "no YAML at all": (
        lambda d: (d / "data.yaml").write_text("train: *SECRET"),
        "found undefined alias '...', line 1, column 8",
    ),
    **{
        f"a list with {line}": (
            lambda d, line=line: [
                (d / "train.txt").write_text(f"{line}\n"),
                (d / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a]"),
            ],
            "(a path)",
        )
        for line in ("SECRET (left)/scan.jpg", "SECRETe\u0301/scan.jpg", "SECRET -/scan.jpg")
    },
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_site_says_what_is_wrong_with_its_data_without_a_name_of_its_files(
    damage: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "SECRET site")
    damage(data.parent)
    known = paths_at({"data": str(data), "name": "north"})
    with pytest.raises(InputError) as error:
        check_dataset(data, "detect", tmp_path, where="site 'north'", splits=("train", "val"))
    assert "SECRET" in str(error.value)  # for the site's own log
    said = "; ".join(without_paths(problem, known) for problem in error.value.problems)
    assert said.startswith("site 'north' ((a path)): ")
    assert "SECRET" not in said
    assert "7342" not in said
    assert reason in said


def test_a_user_without_a_home_can_still_say_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    config = {"data": str(tmp_path / "data.yaml"), "name": "n", "folder": str(tmp_path)}
    assert str(tmp_path) in paths_at(config)


def test_of_an_error_before_a_message_is_handled_only_the_kind_leaves_a_site(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise FileNotFoundError("No usable temporary directory found in ['/home/jane']")

    monkeypatch.setattr("federated_yolo.common.environment.prepare_environment", fail)
    anything: Any = None
    with pytest.raises(RuntimeError) as error:
        client_app(anything, anything)
    assert str(error.value) == "FileNotFoundError before its work began; its own log says why"
    assert error.value.__cause__ is None
    assert "/home/jane" in caplog.text


def test_what_the_server_or_an_error_says_is_a_line_of_a_sites_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A reason can come from anyone: colours and new lines would write lines of their own."""
    site = {"data": str(tmp_path / "data.yaml"), "name": "north", "folder": str(tmp_path)}
    grid = LocalGrid(1, sites=[site])
    reason = "\x1b[31mno\r\nINFO: all is well\x07"
    content = RecordDict({"config": ConfigRecord({"reason": reason})})
    grid.push_messages([Message(content, 1000, "query.refused")])
    told = Message(content, 1000, "query")
    reply = client._error_reply(ValueError(reason), told, grid._contexts[1000])
    assert [record.getMessage() for record in caplog.records] == [
        "refused by the server: no INFO: all is well",
        "error: ValueError: no INFO: all is well",
    ]
    assert reply.error.reason == "ValueError: no INFO: all is well"
