"""Files of strangers: what is no ordinary file is not opened, and YAML does not expand for ever."""

from pathlib import Path

import pytest
import yaml
from hostile_recipes import SPECIAL, laughs

from federated_yolo.common import files
from federated_yolo.common.files import (
    SpecialFileError,
    read_yaml,
    read_yaml_text,
    special_files,
    special_kind,
)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_ordinary_file_is_named_and_not_opened(kind: str, tmp_path: Path) -> None:
    path = SPECIAL[kind](tmp_path / "x.yaml")
    assert special_kind(path) == kind
    with pytest.raises(SpecialFileError, match=f"is {kind}, expected an ordinary file"):
        read_yaml(path)
    assert list(special_files([str(path)])) == [
        f"{path}: is {kind}, expected an ordinary file; remove it"
    ]


def test_files_folders_links_to_them_and_nothing_are_not_special(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to(file)
    (tmp_path / "folder.yaml").symlink_to(tmp_path)
    (tmp_path / "nothing.yaml").symlink_to(tmp_path / "gone")
    assert read_yaml(tmp_path / "link.yaml") == {"a": 1}
    found = [file, tmp_path, *tmp_path.iterdir(), tmp_path / "gone", Path("a\0b"), Path("x" * 999)]
    assert [special_kind(path) for path in found] == [None] * len(found)


def test_yaml_is_read_as_pyyaml_reads_it(tmp_path: Path) -> None:
    text = "a: &x [1, 2.5, yes, null, 2024-01-01]\nb: *x\nc: {<<: {d: 1}, e: é}\n"
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == yaml.safe_load(text)
    assert read_yaml_text(path) == text
    path.write_text("# nothing\n")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (laughs("a"), "its aliases stand for more than 250000 values"),
        ("a: &a {b: *a}", "its aliases stand for more than 250000 values"),
        ("&a [*a]", "its aliases stand for more than 250000 values"),
        ("x: " + "[" * 3000, "nested too deeply"),
        (" " * (4 << 20) + "a: 1", "more than 4 MiB"),
        ("n: 0b_", r"a value that cannot be read \(ValueError\)"),
        ("d: 2024-13-45", r"a value that cannot be read \(ValueError\)"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [", "while parsing"),
    ],
)
def test_yaml_that_expands_or_is_none_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(yaml.YAMLError, match=reason):
        read_yaml(path)


def test_the_bound_is_on_values_after_aliases_are_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &x [1, 2, 3]\nb: *x\n")  # a mapping, two keys, twice a list of three
    monkeypatch.setattr(files, "MAX_YAML_VALUES", 11)
    assert read_yaml(path) == {"a": [1, 2, 3], "b": [1, 2, 3]}
    monkeypatch.setattr(files, "MAX_YAML_VALUES", 10)
    with pytest.raises(yaml.YAMLError, match="more than 10 values"):
        read_yaml(path)
