#!/usr/bin/env python3
"""Are the dependencies the ones that were chosen, complete, and above every known advisory? Needs no network.

    .venv/bin/python .ci/audit.py           # --list: each package, its version and its licence instead

What is installed must stand in constraints.txt at that version, `pip check` must be content, and neither a
pin nor a lower bound in pyproject.toml may lie below what .ci/advisories.toml calls fixed. Exit 1 and a line
for each fault.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: gruard itself, and pip, which comes with Python and is imported by nothing.
NOT_PINNED = frozenset({"gruard", "pip"})
#: What torch's default Linux build brings; torch's own pin settles their versions.
CUDA = ("nvidia-", "cuda-", "triton")

Advisory = dict[str, str]


def main(arguments: Sequence[str] = ()) -> int:
    """Print what is wrong; returns the exit status."""
    if list(arguments) == ["--list"]:
        sys.stdout.writelines(f"{line}\n" for line in licences())
        return 0
    pins = read_pins((ROOT / "constraints.txt").read_text("utf-8"))
    advisories = read_advisories((ROOT / ".ci" / "advisories.toml").read_text("utf-8"))
    bounds = read_bounds((ROOT / "pyproject.toml").read_text("utf-8"))
    installed = {normal(each.name): each.version for each in metadata.distributions()}
    faults = [
        *pin_faults(pins, installed),
        *advisory_faults(advisories, pins, bounds),
        *pip_faults(),
    ]
    for fault in faults:
        sys.stdout.write(f"audit: {fault}\n")
    sys.stdout.write(f"audit: {len(pins)} pins, {len(advisories)} advisories, {len(faults)} faults\n")
    return 1 if faults else 0


def normal(name: str) -> str:
    """A distribution's name as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to be compared; what follows them is of no account here.

    Raises:
        ValueError: it does not begin with numbers.
    """
    found = re.match(r"\d+(\.\d+)*", version)
    if found is None:
        raise ValueError(f"{version!r} is no version")
    numbers = [int(part) for part in found[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()  # 2.4 and 2.4.0 are one version
    return tuple(numbers)


def read_pins(text: str) -> dict[str, str]:
    """Name -> version of constraints.txt."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in text.splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def read_bounds(text: str) -> dict[str, str]:
    """Name -> lowest version that pyproject.toml accepts."""
    project = tomllib.loads(text)
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    groups += project["project"].get("optional-dependencies", {}).values()
    found = (
        re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*>=\s*([\d.]+)", line) for group in groups for line in group
    )
    return {normal(match[1]): match[2] for match in found if match}


def read_advisories(text: str) -> list[Advisory]:
    """The rows of advisories.toml.

    Raises:
        ValueError: a row does not say what it has to say, or says it twice.
    """
    rows: list[Advisory] = tomllib.loads(text)["advisory"]
    seen = set()
    for row in rows:
        if not {"package", "id", "why"} <= row.keys() or not {"fixed", "unreached"} & row.keys():
            raise ValueError(f"advisories.toml: a row lacks something: {row}")
        key = normal(row["package"]), row["id"]
        if key in seen:
            raise ValueError(f"advisories.toml: {row['id']} stands there twice for {row['package']}")
        seen.add(key)
    return rows


def pin_faults(pins: Mapping[str, str], installed: Mapping[str, str]) -> Iterator[str]:
    """What is installed and not pinned, or not at its pin. A local part such as +cpu is of no account."""
    for name, version in sorted(installed.items()):
        if name in NOT_PINNED or name.startswith(CUDA):
            continue
        if name not in pins:
            yield f"{name} {version} is installed and not pinned: pin it or uninstall it"
        elif version.partition("+")[0] != pins[name]:
            yield f"{name} {version} is installed, and constraints.txt pins {pins[name]}"


def advisory_faults(
    advisories: Iterable[Advisory], pins: Mapping[str, str], bounds: Mapping[str, str]
) -> Iterator[str]:
    """Pins and lower bounds that have a known fault, and rows that are about nothing here."""
    for row in advisories:
        name, fixed = normal(row["package"]), row.get("fixed")
        said = f"{row['id']}, {row['why']}"
        if name not in pins:
            yield f"advisories.toml: {row['package']} ({row['id']}) is no longer pinned: strike the row"
            continue
        if fixed is None:
            continue
        if release(pins[name]) < release(fixed):
            yield f"{name} is pinned at {pins[name]}, and {fixed} fixes {said}"
        if name in bounds and release(bounds[name]) < release(fixed) and "unreached" not in row:
            yield f"pyproject.toml accepts {name} {bounds[name]}, and {fixed} fixes {said}"


def licences() -> Iterator[str]:
    """Name, version and licence of everything that is installed, as its own metadata has them."""
    for each in sorted(metadata.distributions(), key=lambda found: normal(found.name)):
        told = each.metadata.get_all("Classifier", [])
        kinds = [line.rpartition(" :: ")[2] for line in told if line.startswith("License :: ")]
        free_text = each.metadata.get("License", "").strip().partition("\n")[0]
        licence = each.metadata.get("License-Expression") or ", ".join(kinds) or free_text or "not told"
        yield f"{each.name} {each.version}: {licence[:80]}"


def pip_faults() -> Iterator[str]:
    """What `pip check` complains about: a requirement that is missing or does not fit."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(  # noqa: S603 -- pip, of this Python
        command, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        yield from (f"pip check: {line}" for line in (done.stdout + done.stderr).splitlines() if line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
