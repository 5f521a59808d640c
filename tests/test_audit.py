"""The dependency audit of `make check`: it passes on the checkout, and each of its findings can be had."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "audit.py"

PINS = {"torch": "2.13.0", "numpy": "2.4.6"}
ROW = {"package": "Torch", "id": "CVE-1", "fixed": "2.10.0", "why": "it runs what it loads"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_toml(*rows: dict[str, str]) -> str:
    return "".join(
        "[[advisory]]\n" + "".join(f'{key} = "{value}"\n' for key, value in row.items()) for row in rows
    )


def test_make_check_runs_the_audit() -> None:
    """It is part of what every change has to pass."""
    plan = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin/python .ci/audit.py" in plan.stdout


def test_audit_needs_no_network(audit: ModuleType) -> None:
    """It is made of the standard library, and nothing in it opens a connection."""
    text = SCRIPT.read_text("utf-8")
    assert not any(word in text for word in ("socket", "urllib", "http", "requests"))
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith("import ")}
    assert imported <= sys.stdlib_module_names
    assert audit.main is not None


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"torch": "2.13.0+cpu", "gruard": "0.1.0", "pip": "1", "nvidia-cublas": "12"}, []),
        ({"six": "1.17.0"}, ["six 1.17.0 is installed and not pinned: pin it or uninstall it"]),
        ({"numpy": "2.4.5"}, ["numpy 2.4.5 is installed, and constraints.txt pins 2.4.6"]),
    ],
)
def test_what_is_installed_must_be_pinned(
    audit: ModuleType, installed: dict[str, str], expected: list[str]
) -> None:
    """A stray package and another version are reported; gruard, pip and torch's CUDA parts are not pinned."""
    assert list(audit.pin_faults(PINS, installed)) == expected


@pytest.mark.parametrize(
    ("changes", "pins", "bounds", "expected"),
    [
        ({}, PINS, {"torch": "2.10"}, []),
        ({}, {"torch": "2.9.9"}, {}, ["torch is pinned at 2.9.9, and 2.10.0 fixes CVE-1"]),
        ({}, PINS, {"torch": "2.9"}, ["pyproject.toml accepts torch 2.9, and 2.10.0 fixes CVE-1"]),
        ({"unreached": "nobody calls it"}, PINS, {"torch": "2.9"}, []),
        ({"unreached": "nobody calls it"}, {"torch": "2.9"}, {}, ["torch is pinned at 2.9, and 2.10.0"]),
        ({}, {"numpy": "2.4.6"}, {}, ["advisories.toml: Torch (CVE-1) is no longer pinned"]),
    ],
)
def test_versions_below_a_fix_are_reported(
    audit: ModuleType,
    changes: dict[str, str],
    pins: dict[str, str],
    bounds: dict[str, str],
    expected: list[str],
) -> None:
    """Pins always, lower bounds unless the fault is out of reach; a row about nothing is reported too."""
    found = list(audit.advisory_faults([ROW | changes], pins, bounds))
    assert len(found) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found, expected, strict=True))


def test_advisory_without_a_fix_is_kept_and_explained(audit: ModuleType) -> None:
    """What nobody has fixed yet may stand there only with the reason why it does not matter here."""
    row = {key: value for key, value in ROW.items() if key != "fixed"}
    with pytest.raises(ValueError, match="lacks something"):
        audit.read_advisories(as_toml(row))
    rows = audit.read_advisories(as_toml(row | {"unreached": "never called"}))
    assert list(audit.advisory_faults(rows, PINS, {"torch": "1.0"})) == []


def test_advisory_may_stand_there_once(audit: ModuleType) -> None:
    """A row that is repeated could be mended in one place only."""
    with pytest.raises(ValueError, match="stands there twice"):
        audit.read_advisories(as_toml(ROW, ROW | {"package": "torch"}))


@pytest.mark.parametrize(
    ("lower", "higher"), [("2.9", "2.10"), ("2.10.0", "2.10.1"), ("78.1.0", "78.1.1"), ("1", "1.0.1")]
)
def test_versions_are_compared_as_numbers(audit: ModuleType, lower: str, higher: str) -> None:
    """2.9 is older than 2.10, and a missing part is a nought."""
    assert audit.release(lower) < audit.release(higher)
    assert audit.release(lower) == audit.release(f"{lower}.0")


def test_text_that_is_no_version_is_refused(audit: ModuleType) -> None:
    """A slip in the table must not pass as an old version."""
    with pytest.raises(ValueError, match="no version"):
        audit.release("latest")


def test_lower_bounds_are_read_from_every_group(audit: ModuleType) -> None:
    """Dependencies, extras and build requirements; a bound on top or an extra in brackets changes nothing."""
    text = """
    [build-system]
    requires = ["setuptools>=77"]
    [project]
    dependencies = ["paho-mqtt>=2.2,<3", "rich"]
    [project.optional-dependencies]
    test = ["coverage[toml]>=7.1"]
    """
    assert audit.read_bounds(text) == {"setuptools": "77", "paho-mqtt": "2.2", "coverage": "7.1"}


def test_pip_check_is_asked(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requirement that is missing is a fault."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert command[1:] == ["-m", "pip", "--disable-pip-version-check", "check"]
        return real([sys.executable, "-c", "print('a 1 requires b'); raise SystemExit(1)"], **options)

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert list(audit.pip_faults()) == ["pip check: a 1 requires b"]


def test_table_holds_the_advisories_of_what_loads_weights(audit: ModuleType) -> None:
    """The two ways past torch's weights_only are in it, each with the version that ends it."""
    rows = audit.read_advisories((ROOT / ".ci" / "advisories.toml").read_text("utf-8"))
    fixed = {row["id"]: row.get("fixed") for row in rows if row["package"] == "torch"}
    assert fixed["CVE-2025-32434"] == "2.6.0"
    assert fixed["CVE-2026-24747"] == "2.10.0"


def test_pins_and_bounds_of_the_checkout_are_above_every_fix(audit: ModuleType) -> None:
    """Neither constraints.txt nor pyproject.toml leads to a version with a known fault."""
    pins = audit.read_pins((ROOT / "constraints.txt").read_text("utf-8"))
    bounds = audit.read_bounds((ROOT / "pyproject.toml").read_text("utf-8"))
    rows = audit.read_advisories((ROOT / ".ci" / "advisories.toml").read_text("utf-8"))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert bounds["torch"]
    assert len(rows) >= 25
    assert list(audit.advisory_faults(rows, pins, bounds)) == []


def test_audit_prints_a_line_for_each_fault(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status says whether there was one."""
    monkeypatch.setattr(audit, "pip_faults", list)
    monkeypatch.setattr(audit, "pin_faults", lambda *_: ["six 1.17.0 is installed and not pinned"])
    assert audit.main() == 1
    assert capsys.readouterr().out.startswith("audit: six 1.17.0 is installed and not pinned\n")
    monkeypatch.setattr(audit, "pin_faults", lambda *_: [])
    assert audit.main() == 0
    assert "0 faults" in capsys.readouterr().out


def test_audit_lists_every_package_with_its_licence(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bill of materials on demand: nothing installed is missing, and each licence but one is told."""
    assert audit.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split(" ")[0]: line.partition(": ")[2] for line in lines}
    assert listed.keys() == {each.name for each in metadata.distributions()}
    assert "Apache-2.0" in listed["gruard"]
    assert {name for name, licence in listed.items() if licence == "not told"} <= {"atheris"}
