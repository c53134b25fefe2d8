"""The reviewed app: of a clone or of an installed package, the same bundle every time."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import pytest
from kit import small_bundle
from processes import ROOT

import federated_yolo
from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle
from federated_yolo.consortium.packages import (
    constraints_text,
    different_versions,
    needed_versions,
)

build = bundle.build  # before a fixture puts the small one there


def test_a_bundle_that_is_unpacked_makes_the_same_bundle_which_is_what_a_run_submits(
    tmp_path: Path,
) -> None:
    from flwr.cli.build import build_fab_from_disk

    app, content = build()
    bundle.unpack(content, tmp_path / "app")
    assert build_fab_from_disk(tmp_path / "app") == content
    assert hashlib.sha256(content).hexdigest() == app.hash
    assert bundle.differences(content, tmp_path / "app") == []
    assert {"LICENSE", "federated.py"} <= {path.name for path in (tmp_path / "app").iterdir()}


def test_an_installed_package_has_a_bundle_too_with_its_templates_and_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "federated_yolo"
    shutil.copytree(ROOT / "federated_yolo", installed, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(ROOT / "configs", installed / "configs")
    monkeypatch.setattr(federated_yolo, "__file__", str(installed / "__init__.py"))
    app, content = build()
    assert app.file.startswith("federated-yolo.federated-yolo.0-1-0.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
    assert {
        "pyproject.toml",
        "federated_yolo/app.py",
        "federated_yolo/configs/demo.yaml",
        "federated_yolo/consortium/templates/nginx.conf.md",
        "federated_yolo/reporting/report.html.md",
    } <= names


def test_each_difference_is_named(tmp_path: Path) -> None:
    _, content = small_bundle()
    bundle.unpack(content, tmp_path / "app")
    (tmp_path / "app" / "app" / "a.py").write_text("x = 2\n")
    (tmp_path / "app" / "b.py").touch()
    (tmp_path / "app" / "pyproject.toml").unlink()
    assert bundle.differences(content, tmp_path / "app") == [
        "pyproject.toml is missing",
        "b.py was added",
        "app/a.py was changed",
    ]


def test_a_bundle_that_leads_out_of_its_folder_or_lies_is_refused(tmp_path: Path) -> None:
    def made(name: str, told: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, b"x")
            digest = hashlib.sha256(told).hexdigest()
            archive.writestr(bundle.MANIFEST, f"{name},{digest},8")
        return buffer.getvalue()

    for content, reason in (
        (made("../x.py", b"x"), "leads out of it"),
        (made("x.py", b"y"), "x.py is not as its list of files says"),
        (b"no zip", "not readable"),
    ):
        with pytest.raises(InputError, match=reason):
            bundle.unpack(content, tmp_path / "app")
        assert not (tmp_path / "app").exists()


def test_the_constraints_are_what_is_installed_here_without_builds() -> None:
    found = needed_versions()
    assert {"flwr", "torch", "numpy", "pydantic-core"} <= set(found)
    assert not any("+" in number for number in found.values())
    assert "pytest" not in found
    assert f"flwr=={found['flwr']}\n" in constraints_text(found)
    assert different_versions(found) == {}
    changed = {**found, "flwr": "1.0", "no-such-package": "1", "torch": found["torch"]}
    assert different_versions(changed) == {"flwr": (found["flwr"], "1.0")}
