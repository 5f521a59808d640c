"""Everything README says is run here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gruard.daemon.cli import main
from gruard.daemon.settings import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_readme_configuration_loads(tmp_path: Path) -> None:
    """The configuration shown is complete and correct."""
    (tmp_path / "gruard.toml").write_text(blocks("toml")[0])
    settings = load(tmp_path / "gruard.toml", {})
    assert settings.sources[0].topic == "sensors/{device}"


def test_readme_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The library example runs as printed."""
    exec(compile(blocks("python")[0], "README.md", "exec"), {})  # noqa: S102 - our own text
    assert re.match(r"True 0\.\d+ False 0\.\d+ \[", capsys.readouterr().out)


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if line.startswith("gruard ")]
)
def test_readme_command_is_accepted(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command shown parses: its options exist."""
    words = line.split("#", maxsplit=1)[0].split()[1:]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in capsys.readouterr().out
        break


def test_readme_shows_every_command_of_the_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    """No command is left out of README."""
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z][a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert f"gruard {command}" in README or f"make {command}" in README


def test_readme_make_targets_exist() -> None:
    """Every make command named is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", README)) - {"and"}
    assert {"demo", "test", "check", "bench"} <= named <= targets


def test_readme_links_and_proofs_exist() -> None:
    """Every file that README points to is there."""
    files = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`(tests/[a-z_]+\.py)`", README)
    assert len(files) > 20
    assert not [name for name in files if not (ROOT / name).exists()]


def test_bugs_found_are_each_kept_away_by_a_test() -> None:
    """Every test that the table of bugs names is there, and every row names one."""
    table = (ROOT / "tests/torture/BUGS.md").read_text("utf-8")
    rows = re.findall(r"^\| (?!---|What).*\|$", table, re.MULTILINE)
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) > 30
    assert all(named), rows[named.index([])]
    assert not [test for row in named for test in row if f"def {test}(" not in sources]


def test_readme_metrics_and_topics_are_the_daemons_own() -> None:
    """Topics in the table are those that the code publishes."""
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "daemon").glob("*.py"))
    for word in ("alerts", "state", "status", "info"):
        assert f"`gruard/{word}" in README
        assert f"}}/{word}" in source


def test_version_is_one_everywhere() -> None:
    """The command, the package and the project table tell one version."""
    done = subprocess.run(
        [sys.executable, "-m", "gruard.daemon", "--version"], capture_output=True, text=True, check=True
    )
    version = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version is not None
    assert done.stdout.strip() == f"gruard {version[1]}"
