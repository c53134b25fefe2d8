"""What the docs say is true: commands run, settings exist, links lead somewhere."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, clean_environment, finished
from recipes import make_dataset

import federated_yolo
from federated_yolo.config.loading import load_config
from federated_yolo.config.resume import RESUME_SETTINGS

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "benchmarks" / "README.md"]
IDS = [path.relative_to(ROOT).as_posix() for path in PAGES]
# `yolo`, also where torchvision's operators do not fit PyTorch, as with its CUDA build beside a CPU
# build of PyTorch.
YOLO = (
    "from federated_yolo.common.torchvision_nms import ensure_torchvision_nms as ensure; ensure(); "
    "from ultralytics.cfg import entrypoint; entrypoint()"
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# So that a test takes no longer than it must; later settings win.
QUICK = "num_rounds=1 train.imgsz=64 train.batch=4 evaluate.every=1"
QUICK_BY_COMMAND = {
    "python federated.py": QUICK,
    "yolo detect train": "epochs=1 imgsz=64 batch=4 device=cpu",
    "yolo detect val": "imgsz=64 device=cpu",
    "yolo export": "imgsz=64 device=cpu",
}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    text = re.sub(r"[`*:.,()?/]", "", heading.lower())
    return text.strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_scripts_exist_and_settings_are_known(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for script in re.findall(r"\bpython ((?:utils|benchmarks)/\w+\.py|federated\.py)", text):
        assert (ROOT / script).exists(), script
    for line in re.findall(r"^[ ]{4}python federated\.py (.*)$|^python federated\.py (.*)$", text,
                           re.MULTILINE):  # fmt: skip
        words = shlex.split("".join(line), comments=True)
        settings = [w for w in words if re.fullmatch(r"[a-z][\w.]*=.*", w)]
        settings = [s for s in settings if not s.startswith(("resume=", "key="))]
        load_config(ROOT / "configs" / "demo.yaml", settings)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = r"\b((?:federated_yolo|utils|benchmarks|configs|docs)/[\w./-]*\w\.(?:py|md|yaml|png))\b"
    for name in re.findall(named, page.read_text()):
        is_example = name in ("utils/careful.py", "utils/FILE.py")
        is_former = name == "utils/test_certificates.py" and page.name == "CHANGELOG.md"
        assert is_example or is_former or (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


def test_every_setting_has_a_meaning_and_stands_in_the_reference() -> None:
    made = runpy.run_path(str(ROOT / ".ci" / "settings_reference.py"))
    assert made["missing_meanings"]() == []
    rows = {
        cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
        for line in made["reference"]().splitlines()
        if len(cells := line.strip("|").split(" | ")) == 4
    }
    assert rows["num_rounds"][:2] == ["whole number ≥ 1 and ≤ 1000000", "`10`"]
    assert rows["base_model"][1] == "required"
    assert rows["codec.name"][0] == "`none`, `float16`, `int8`, `topk`"
    assert rows["datasets[].not_annotated"][0] == "list of text"
    assert rows["client_resources.num_gpus"][0] == "number ≥ 0 or `auto`"
    assert all(row[2] for row in rows.values())
    may_change = {name.split(".")[0] for name, row in rows.items() if "on resume.*" in row[2]}
    assert may_change == set(RESUME_SETTINGS)
    options = made["reference"]().split("### Options of `strategy`")[1]
    assert "| `fedprox` | `proximal_mu: 0.01` |" in options


def test_the_api_page_has_every_public_name_and_nothing_else() -> None:
    documented = re.findall(
        r"^::: [\w.]+\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(federated_yolo.__all__)


def test_the_python_of_the_docs_imports_nothing_but_the_public_names() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    imported = re.findall(r"^from (federated_yolo[\w.]*) import (.*)$", page, re.MULTILINE)
    assert len(imported) == 4
    for module, names in imported:
        assert module == "federated_yolo"
        assert set(names.split(", ")) <= set(federated_yolo.__all__)
    assert not re.search(r"federated_yolo[./]\w", page)


@pytest.mark.timeout(900)
def test_the_tutorial_leads_from_a_folder_of_images_to_an_onnx_file(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    for name in ("federated_yolo", "utils", "federated.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = ("circle", "square", "triangle")
    data = make_dataset(tmp_path / "made", num_train=18, num_val=1, names=names).parent
    for kind in ("images", "labels"):
        shutil.move(data / kind / "train", tmp_path / "my_data" / kind)
    (yaml_text,) = blocks(page, "yaml")
    (tmp_path / "my_data" / "data.yaml").write_text(yaml_text)
    for command in "".join(blocks(page, "bash")).splitlines():
        run(command.replace("round30", "round1"), tmp_path)
    weights = tmp_path / "runs" / "federated" / "first" / "weights"
    assert (weights / "best.onnx").stat().st_size > 10**6
    assert (tmp_path / "runs/federated/first/report.html").exists()
    assert (tmp_path / "comparison.html").exists()
    assert list((tmp_path / "runs" / "federated" / "check").glob("*.png"))


def run(command: str, folder: Path) -> None:
    """Run a line of the docs, with less work."""
    program, *arguments = shlex.split(command.replace("$PWD", str(folder)))
    where: list[str] = [str(Path(sys.executable).parent / program)]
    if program == "yolo":
        where = [sys.executable, "-c", YOLO]
    quick = next((more for start, more in QUICK_BY_COMMAND.items() if start in command), "")
    arguments = [a.replace("640", "64") for a in arguments]
    done = subprocess.run(
        [*where, *arguments, *quick.split()],
        cwd=folder,
        env={**clean_environment(), "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0",
             "YOLO_CONFIG_DIR": str(folder / "settings")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.timeout(600)
def test_the_python_of_the_docs_runs(tmp_path: Path) -> None:
    sweep, client, script = (tmp_path / f"{name}.py" for name in ("sweep", "careful", "script"))
    one, loop, subclass, both = blocks(ROOT / "docs" / "python.md", "python")
    loop = loop.replace('("fedavg", "fedavgm", "fedprox")', '("fedavgm",)')
    quick = ", ".join(f'"{setting}"' for setting in [*QUICK.split(), "client=careful.py:Careful"])
    programs = [re.sub(r'"num_rounds=\d+"', quick, text) for text in (one, loop)]
    assert all(quick in program for program in programs)
    client.write_text(subclass)
    sweep.write_text("\n".join(programs))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    quick = ", ".join(f'"{setting}"' for setting in QUICK.split())
    script.write_text(both.replace('"name=telling"', f'"name=telling", {quick}'))
    output = ""
    for program in (sweep, script):
        done = finished(
            [sys.executable, program.name],
            cwd=tmp_path,
            PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        output += done.stdout
    assert "best.pt" in output
    assert "'fedavgm'" in output
    told = list((tmp_path / "runs" / "federated" / "telling").rglob("losses.txt"))
    assert ["train/box_loss" in path.read_text() for path in told] == [True] * 3
    assert (tmp_path / "runs" / "federated" / "fedavgm" / "report.html").exists()


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_the_python_of_the_docs_is_typed(tmp_path: Path) -> None:
    """As an editor checks it, which knows that there may be no best round."""
    for page in (ROOT / "README.md", ROOT / "docs" / "python.md"):
        for number, text in enumerate(blocks(page, "python")):
            (tmp_path / f"{page.stem}_{number}.py").write_text(text)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", "."]
    done = finished(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
