"""The reviewed app: one .fab file, unpacked where it runs, and compared file by file.

`flwr run` makes a bundle of a folder. The operator's kit has the unpacked bundle, so that each run
submits the same one, whatever happens to the clone; a site has it where its SuperNode looks, and
lets it write no other there.
"""

import hashlib
import io
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from tempfile import TemporaryDirectory

import federated_yolo
from federated_yolo.common.errors import InputError
from federated_yolo.consortium.folder import App
from federated_yolo.consortium.templates import fill

MANIFEST = ".info/CONTENT"  # a line for each file: path, SHA-256, size in bits
MAX_BYTES = 10 << 20  # Flower's limit
MAX_UNPACKED = 100 << 20
HASH_DIGITS = 8  # of a hash in names of files and folders


# unstable: flwr.cli.build.build_fab_from_disk
# unstable: flwr.cli.build.get_fab_filename
def build() -> tuple[App, bytes]:
    """Make the bundle of this package: of its clone, or of the installed package."""
    from flwr.cli.build import build_fab_from_disk, get_fab_filename

    with _source() as source:
        content = build_fab_from_disk(source)
        config = tomllib.loads((source / "pyproject.toml").read_text())
    digest = hashlib.sha256(content).hexdigest()
    file = get_fab_filename(config, digest)
    return App(file=file, hash=digest, version=federated_yolo.__version__), content


@contextmanager
def _source() -> Iterator[Path]:
    """Yield a folder of which Flower can make the bundle."""
    package = Path(federated_yolo.__file__).resolve().parent
    if (package.parent / "pyproject.toml").is_file():
        yield package.parent
        return
    with TemporaryDirectory() as temporary:  # an installed package has no pyproject.toml
        folder = Path(temporary) / "app"
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "py.typed")
        shutil.copytree(package, folder / package.name, ignore=ignored)
        try:
            needed = [r for r in requires("federated-yolo") or () if "extra ==" not in r]
            summary = metadata("federated-yolo")["Summary"]
        except PackageNotFoundError as error:
            raise InputError("this is neither a clone nor an installed package") from error
        version = re.sub(r"\+.*", "", federated_yolo.__version__)
        text = fill("pyproject.toml.md", version=version, summary=summary, dependencies=needed)
        (folder / "pyproject.toml").write_text(text)
        yield folder


def unpack(content: bytes, target: Path) -> None:
    """Write the files of a bundle into a new folder. Raises InputError if it is not sound."""
    with _opened(content) as archive:
        listed = _manifest(archive)
        target.mkdir(parents=True)
        for name in listed:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def differences(content: bytes, folder: Path) -> list[str]:
    """Return which files of an unpacked bundle are changed, missing or added. Raises InputError."""
    with _opened(content) as archive:
        listed = _manifest(archive)
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    lines = [f"{name} is missing" for name in sorted(listed.keys() - found.keys())]
    lines += [f"{name} was added" for name in sorted(found.keys() - listed.keys())]
    for name in sorted(listed.keys() & found.keys()):
        if hashlib.sha256(found[name].read_bytes()).hexdigest() != listed[name]:
            lines.append(f"{name} was changed")
    return lines


def installed_name(app: App) -> str:
    """Return the name of the folder below $FLWR_HOME/apps where a SuperNode looks for an app."""
    publisher, name, version, digest = app.file.removesuffix(".fab").split(".")
    return f"{publisher}.{name}.{version.replace('-', '.')}.{digest}"


@contextmanager
def _opened(content: bytes) -> Iterator[zipfile.ZipFile]:
    if len(content) > MAX_BYTES:
        raise InputError(f"the app's bundle: {len(content)} bytes, expected at most {MAX_BYTES}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED:
                raise InputError("the app's bundle: unpacks to more than 100 MiB")
            yield archive
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"the app's bundle: not readable: {error}") from error


def _manifest(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the SHA-256 of each file that the bundle lists. Raises InputError if one differs."""
    listed = {}
    for line in archive.read(MANIFEST).decode().splitlines():
        name, digest, _ = line.rsplit(",", 2)
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"the app's bundle: {name!r} leads out of it")
        if hashlib.sha256(archive.read(name)).hexdigest() != digest:
            raise InputError(f"the app's bundle: {name} is not as its list of files says")
        listed[name] = digest
    return listed
