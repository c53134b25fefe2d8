"""Each thing that can be wrong at a site, once: found, with its remedy, and nothing is changed."""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from as_exports import as_coco
from kit import consortium, joined
from recipes import make_dataset

from federated_yolo.sites import check
from federated_yolo.sites.check import Finding
from federated_yolo.sites.folder import SiteFolder
from federated_yolo.sites.probe import Contact


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A site with data, of a server that is not there."""
    consortium(tmp_path / "lungs", host="127.0.0.1:9")
    return joined(tmp_path / "lungs", "north", tmp_path / "n", str(make_dataset(tmp_path / "data")))


def bad(findings: Iterable[Finding]) -> dict[str, str]:
    return {f.what: f"{f.text} | {f.remedy}" for f in findings if f.is_good is False}


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_site_without_a_server_lacks_nothing_else_and_nothing_is_written(
    site: SiteFolder,
) -> None:
    before = files_of(site.path.parent)
    found = bad(check.all_checks(site))
    assert list(found) == ["server"]
    assert "allow this machine to connect to 127.0.0.1:9 (TCP, outbound)" in found["server"]
    assert files_of(site.path.parent) == before


def test_an_export_is_read_without_writing_what_is_made_of_it(site: SiteFolder) -> None:
    top = site.path.parent
    export = as_coco(top / "data" / "data.yaml", top / "export")
    joined(top / "lungs", "north", site.path, str(export))
    before = files_of(top)
    found = check.data(site)
    assert found.is_good, found.text
    assert "6 train and 3 val images, classes a, b, c" in found.text
    assert files_of(top) == before


def test_settings_are_checked_with_all_their_problems(site: SiteFolder) -> None:
    with (site.path / "site.yaml").open("a") as file:
        file.write("show-images: many\nshow-image: 3\n")
    found = bad(check.quick_checks(site))["settings"]
    assert "show-images: found 'many', expected a whole number of images" in found
    assert "show-image: unknown; did you mean 'show-images'?" in found


def test_versions_that_differ_are_named_and_only_some_must_be_equal(site: SiteFolder) -> None:
    terms = site.terms
    older = terms.model_copy(update={"versions": {**terms.versions, "flwr": "1.0"}})
    found = bad(check.versions(SiteFolder(site.path, older)))["versions"]
    assert f"flwr is {terms.versions['flwr']}, not 1.0 | pip install -c " in found
    minor = terms.model_copy(update={"versions": {**terms.versions, "pydantic": "1.0"}})
    findings = list(check.versions(SiteFolder(site.path, minor)))
    assert [finding.is_good for finding in findings] == [True, None]
    assert "pydantic is" in findings[1].text


def test_an_app_that_is_changed_or_joined_by_another_is_found(site: SiteFolder) -> None:
    apps = site.flower_home / "apps"
    apps.chmod(0o755)
    (apps / "us.app.9.9.9.00000000").mkdir()
    file = next(apps.rglob("a.py"))
    file.chmod(0o644)
    file.write_text("x = 2\n")
    found = bad(check.app(site))["app"]
    assert "app/a.py was changed; found another app: us.app.9.9.9.00000000 | join again" in found
    (site.path / site.terms.app.file).write_bytes(b"another")
    assert "does not have the hash of the invitation" in bad(check.app(site))["app"]
    shutil.rmtree(next(path for path in apps.iterdir() if path.name.startswith("us.app.0")))
    (site.path / site.terms.app.file).unlink()
    assert "No such file" in bad(check.app(site))["app"]


def test_a_disk_without_room_is_found(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MIN_FREE", 1 << 60)
    found = check.disk(site)
    assert found.is_good is False
    assert "or change 'folder'" in found.remedy


def test_a_gpu_that_pytorch_cannot_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check, "NVIDIA", Path("/proc/self/status"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert check.gpu().is_good is False
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the CPU is meant
    assert check.gpu().is_good is None


def test_a_key_that_others_can_read_or_of_another_pair_is_found(site: SiteFolder) -> None:
    key = site.path / "key"
    key.chmod(0o640)
    assert f"can be read by others | chmod 600 {key}" in bad([check.own_key(site)])["key"]
    key.chmod(0o600)
    other = joined(site.path.parent / "lungs", "south", site.path.parent / "s")
    (site.path / "key.pub").write_bytes((other.path / "key.pub").read_bytes())
    assert "is of another key" in bad([check.own_key(site)])["key"]
    key.write_text("nothing")
    assert bad([check.own_key(site)])["key"]
    key.unlink()
    assert "No such file" in bad([check.own_key(site)])["key"]


@pytest.mark.parametrize(
    ("ahead_s", "is_good"),
    [(0.0, True), (2.0, True), (3.5, None), (5.5, False), (-200.0, None), (-306.0, False)],
)
def test_the_clock_may_be_off_as_far_as_flower_takes_it(
    ahead_s: float, is_good: bool | None
) -> None:
    found = check.clock(Contact(ends=time.time(), ahead_s=ahead_s, error_s=0.5))
    assert found.is_good is is_good
    if is_good is False:
        assert "Flower takes 5 s ahead to 305 s behind" in found.text
        assert "NTP" in found.remedy


def test_data_that_is_damaged_is_found_with_its_file(site: SiteFolder) -> None:
    (site.path.parent / "data" / "labels" / "train" / "0.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    found = check.data(site)
    assert found.is_good is False
    assert "train/0.jpg: Label class 7 exceeds dataset class count 3" in found.text
    shutil.rmtree(site.path.parent / "data")
    assert check.data(site).is_good is False


def test_a_site_that_could_take_another_app_is_told_and_may_run(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_root, expected in ((True, [True, None]), (False, [True])):
        monkeypatch.setattr(check.os, "access", lambda *_, may=is_root: may)
        assert [finding.is_good for finding in check.app(site)] == expected
