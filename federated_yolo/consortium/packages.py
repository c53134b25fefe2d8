"""The versions of all packages that this package needs here, as lines of a constraints.txt."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.metadata import version as version_of

from packaging.requirements import Requirement

ROOT_PACKAGE = "federated-yolo"
# Those that change results or do not speak with other versions: they must be equal.
MUST_BE_EQUAL = ("flwr", "torch", "ultralytics-opencv-headless", "ultralytics")


def needed_versions() -> dict[str, str]:
    """Return the version of each installed package that this one needs, also indirectly.

    Versions are without their build ("+cpu"), so that a machine with a GPU can have its own.
    """
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(ROOT_PACKAGE, frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform, or not chosen
            continue
        if name != ROOT_PACKAGE:
            found[name] = package.version.partition("+")[0]
        for line in package.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            wanted = (_canonical(requirement.name), frozenset(requirement.extras))
            if wanted not in seen:
                seen.add(wanted)
                waiting.append(wanted)
    return dict(sorted(found.items()))


def constraints_text(versions: dict[str, str]) -> str:
    """Return these versions as a constraints.txt."""
    lines = [f"{name}=={number}" for name, number in versions.items() if not _is_of_gpu(name)]
    return "\n".join(["# What the server has: pip install -c constraints.txt ...", *lines, ""])


def different_versions(wanted: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return (here, wanted) for each package that is here in another version, or not at all.

    A package that is missing counts only if versions of it must be equal.
    """
    different = {}
    for name, number in wanted.items():
        try:
            here = version_of(name).partition("+")[0]
        except PackageNotFoundError:
            here = "not installed"
            if name not in MUST_BE_EQUAL:
                continue
        if here != number and not _is_of_gpu(name):
            different[name] = (here, number)
    return different


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _is_of_gpu(name: str) -> bool:
    """Whether a package is a part of PyTorch's build for a GPU."""
    return name.startswith(("nvidia-", "cuda-", "triton", "pytorch-triton"))
