"""What users install: the wheel holds the code and nothing else, and the pins cover what is installed."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).resolve().parent.parent
#: What a fresh clone would not have; left out of the copy that the wheel is built from.
MADE_HERE = shutil.ignore_patterns(
    *(".git", ".venv*", ".typing", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"),
    ".coverage*",
)
#: What torch's default Linux build brings; torch's own pin settles their versions, a CPU build has none.
CUDA = ("nvidia-", "cuda-", "triton")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, with the installed build tools and no network."""
    scratch = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, scratch / "copy", ignore=MADE_HERE)
    build = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(
        [*build, "--outdir", str(scratch / "out"), str(scratch / "copy")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=scratch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (scratch / "out").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> frozenset[str]:
    """Paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


@pytest.fixture(scope="module")
def description(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _modules_of_checkout() -> set[str]:
    """Every module of the checkout, as the path under which the wheel must hold it."""
    return {
        f"gruard/{path.relative_to(ROOT).as_posix()}"
        for folder in ("daemon", "models")
        for path in (ROOT / folder).rglob("*.py")
    }


def _pins() -> dict[str, str]:
    """Name, normalised -> version, from constraints.txt."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted(distribution: str, extras: set[str], seen: dict[str, set[str]]) -> None:
    """Collect what an installed distribution needs here, and what that needs, into `seen`."""
    from packaging.requirements import Requirement

    if distribution in seen and extras <= seen[distribution]:
        return
    seen.setdefault(distribution, set()).update(extras)
    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": e}) for e in {"", *extras}
        ):
            name = _normal(requirement.name)
            if name.startswith(CUDA):
                continue
            try:
                metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # an extra that was not asked for, such as `check`
            _wanted(name, set(requirement.extras), seen)


def test_wheel_holds_every_module_of_the_checkout(names: frozenset[str]) -> None:
    """Nothing that an editable install can import is missing from the wheel."""
    assert {name for name in names if name.endswith(".py")} == _modules_of_checkout()


def test_declared_packages_are_the_folders_with_code() -> None:
    """`[tool.setuptools] packages` names each folder that holds code, no more and no less."""
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in _modules_of_checkout()}
    assert set(_project()["tool"]["setuptools"]["packages"]) == folders


def test_wheel_holds_nothing_but_the_two_packages(names: frozenset[str], wheel: Path) -> None:
    """Tests, benchmarks, deployment files and weights stay out."""
    outside = {
        name
        for name in names
        if not name.startswith(
            ("gruard/daemon/", "gruard/models/", f"{wheel.name.split('-py3')[0]}.dist-info/")
        )
    }
    assert outside == set()
    weights = {name for name in names if name.endswith((".safetensors", ".pt", ".npz", ".onnx", ".db"))}
    assert weights == set()


def test_wheel_tells_type_checkers_that_it_is_typed(names: frozenset[str]) -> None:
    """Both packages carry py.typed."""
    assert {"gruard/daemon/py.typed", "gruard/models/py.typed"} <= names


def test_wheel_carries_the_licence(wheel: Path, description: Message) -> None:
    """The licence text is inside, word for word, and the metadata names it."""
    assert description["License-Expression"] == "Apache-2.0"
    assert description.get_all("License-File") == ["LICENSE"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/licenses/LICENSE"))
        text = archive.read(name)
    assert text == (ROOT / "LICENSE").read_bytes()
    assert b"Version 2.0, January 2004" in text


def test_wheel_metadata_repeats_the_project_table(description: Message) -> None:
    """Name, Python version, extras and the README reach the metadata."""
    project = _project()["project"]
    assert description["Name"] == "gruard"
    assert description["Requires-Python"] == ">=3.11"
    assert set(description.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert description["Description-Content-Type"] == "text/markdown"
    assert description.get_payload() == (ROOT / "README.md").read_text("utf-8")


def test_wheel_version_is_the_one_in_the_code(description: Message) -> None:
    """The version is written twice, in the project table and in the code; both say the same."""
    from gruard.daemon import __version__

    assert description["Version"] == _project()["project"]["version"] == __version__


def test_command_starts_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """The unpacked wheel, put first on the path, answers `--version` through its own entry point."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    entry = configparser.ConfigParser()
    (path,) = tmp_path.glob("*.dist-info/entry_points.txt")
    entry.read_string(path.read_text("utf-8"))
    module, _, function = entry["console_scripts"]["gruard"].partition(":")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['gruard', '--version']\n"
        f"import {module} as entry; print(entry.__file__)\n"
        f"sys.exit(entry.{function}())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    location, version = done.stdout.splitlines()
    assert Path(location).is_relative_to(tmp_path)
    assert _project()["project"]["version"] in version


def test_tests_run_against_the_code_they_mean() -> None:
    """This run imports the checkout, or, when it was started for a wheel, that wheel's installation."""
    prefix = os.environ.get("WHEEL_PREFIX")
    for package in ("gruard.daemon", "gruard.models"):
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        if prefix is None:
            assert Path(found.origin).parent == ROOT / package.removeprefix("gruard.")
        else:
            assert Path(found.origin).is_relative_to(prefix)


def test_constraints_pin_everything_that_an_installation_brings() -> None:
    """Each installed package that gruard or its extras lead to is pinned, at the version that runs here."""
    seen: dict[str, set[str]] = {}
    _wanted("gruard", {"demo", "test", "check"}, seen)
    del seen["gruard"]
    installed = {name: metadata.version(name).partition("+")[0] for name in seen}
    pins = _pins()
    assert {"torch", "pytest", "iotcore"} <= installed.keys()
    assert {name: version for name, version in installed.items() if pins.get(name) != version} == {}


def test_constraints_pin_torch_exactly() -> None:
    """torch is held to one release: a range would let a newer build with CUDA win over a CPU build."""
    assert _pins()["torch"] == "2.13.0"


def test_constraints_are_exact_and_fit_the_declared_ranges() -> None:
    """Every line pins one version, and no pin contradicts a range in the project table."""
    from packaging.requirements import Requirement

    pins = _pins()
    assert all(re.fullmatch(r"[0-9]+(\.[0-9]+)+", version) for version in pins.values())
    project = _project()["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = [Requirement(text) for group in groups for text in group]
    misfits = [r.name for r in declared if not r.specifier.contains(pins.get(_normal(r.name), "0"))]
    assert misfits == []
