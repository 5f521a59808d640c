"""The Makefile and the scripts behind it: what each target would do, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("help", "demo", "test", "test-wheel", "check", "bench", "quality", "torture", "mutants", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    # A surrounding make hands its flags and settings down; this one must start afresh.
    inherited = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "ARGS", "APT"}}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _plan(*arguments: str) -> str:
    """What make would run."""
    done = _run("make", "--no-print-directory", "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that make reads, as a fresh clone has them: without .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def _fake_python(folder: Path, script: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    return str(path)


def test_make_alone_lists_every_target() -> None:
    """`make` prints one line for each target and changes nothing."""
    done = _run("make", "--no-print-directory")
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.returncode == 0
    assert listed == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_how_to_reach_each_target(target: str) -> None:
    """Each target has a plan without a missing rule."""
    assert _plan(target)


def test_make_test_holds_the_whole_suite_to_the_coverage_gate() -> None:
    """Without ARGS the tests run under coverage and a report with a minimum follows."""
    plan = _plan("test")
    assert ".venv/bin/pytest --numprocesses 4 --dist loadfile --cov " in plan
    assert ".venv/bin/pytest -m alone" in plan
    assert "--fail-under=90" in plan
    assert all(f"{folder}/*" in plan for folder in ("models", "daemon/core", "daemon/decoders"))


def test_make_test_with_arguments_has_no_coverage_gate() -> None:
    """A part of the suite runs as asked, without a minimum that it could not reach."""
    plan = _plan("test", "ARGS=-k batch")
    assert ".venv/bin/pytest -k batch" in plan
    assert "fail-under" not in plan


def test_make_demo_takes_arguments() -> None:
    """ARGS reach the demo's command line."""
    assert ".venv/bin/gruard demo --seed 3" in _plan("demo", "ARGS=--seed 3")


def test_fresh_clone_installs_under_the_constraints(clone: Path) -> None:
    """Without .venv the plan makes one and installs both extras at the pinned versions."""
    done = _run("make", "-n", "demo", cwd=clone)
    assert "-m venv --clear .venv" in done.stdout
    assert "install --quiet -c constraints.txt --no-build-isolation -e '.[demo,test]'" in done.stdout


def test_environment_made_elsewhere_is_made_anew(clone: Path) -> None:
    """A copied .venv, whose scripts start another checkout's Python, is not used."""
    scripts = clone / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "pip").write_text("#!/elsewhere/.venv/bin/python\n", "utf-8")
    (scripts / "python").symlink_to(shutil.which("python3") or "python3")
    (clone / ".venv" / ".ready").touch()
    done = _run("make", "-n", "demo", cwd=clone)
    assert "-m venv --clear .venv" in done.stdout
    assert not (clone / ".venv" / ".ready").exists()


def test_old_python_is_refused_in_words(clone: Path) -> None:
    """A Python below 3.11 is named, with the way to choose another."""
    old = _fake_python(clone, 'case "$1" in --version) echo "Python 3.9.2";; *) exit 1;; esac')
    done = _run("make", "test", f"PYTHON={old}", cwd=clone)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (clone / ".venv").exists()


def test_python_without_venv_is_refused_in_words(clone: Path) -> None:
    """A Python that lacks venv leads to the package that brings it."""
    bare = _fake_python(clone, 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = _run("make", "demo", f"PYTHON={bare}", cwd=clone)
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_system_packages_are_left_alone_when_present() -> None:
    """Nothing is said and nothing installed when every command is there."""
    done = _run("bash", ".ci/system-packages", "sh=dash", "make=make")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_system_packages_may_be_switched_off() -> None:
    """With APT=no a missing command is reported by its package, and the run goes on."""
    done = _run("bash", ".ci/system-packages", "no-such-command=some-package", APT="no")
    assert done.returncode == 0
    assert "some-package" in done.stdout
    assert "skipped" in done.stdout


def test_system_packages_go_on_without_apt(tmp_path: Path) -> None:
    """Where there is no apt-get, the run goes on and says what is missing."""
    for name in ("bash", "sh", "env", "id"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    script = (ROOT / ".ci" / "system-packages").read_text("utf-8")
    without_sbin = tmp_path / "script"
    without_sbin.write_text(script, "utf-8")
    done = _run("bash", str(without_sbin), "no-such-command=some-package", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no apt-get here" in done.stdout


def test_system_packages_never_ask_for_a_password(tmp_path: Path) -> None:
    """A user who is not root and whose sudo wants a password gets a message instead of a prompt."""
    asked = tmp_path / "asked"
    fakes = {
        "id": "echo 1000",
        "apt-get": f"echo apt-get >> '{asked}'",
        "sudo": f"printf '%s ' \"$@\" >> '{asked}'; exit 1",
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = _run("bash", ".ci/system-packages", "no-such-command=some-package", PATH=path)
    assert done.returncode == 0
    assert "passwordless sudo" in done.stdout
    assert asked.read_text("utf-8") == "-n true "


@pytest.mark.parametrize("script", ["run", "system-packages"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    """The scripts start by name and bash finds no fault in them."""
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    assert _run("bash", "-n", str(path)).returncode == 0
