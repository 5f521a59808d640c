"""`gruard models`: what people see of the registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fuzz.models import sealed, sound_tensors
from support_engine import plant_rows, readings_of
from support_pipeline import UNTRAINED, opened, play

from gruard.daemon.cli import main
from gruard.daemon.edges.trainer import MODELS
from gruard.models import weights

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.models.weights import ModelPackage


@pytest.fixture
def packages(tmp_path: Path) -> tuple[ModelPackage, ModelPackage]:
    """Two models that took charge of a group, one after the other."""
    tensors = sound_tensors()
    first = sealed(tensors)
    second = sealed(tensors | {"gate": tensors["gate"] * 0.5})
    state = tmp_path / "state"
    with opened(state, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(60, fields=2)))
        (state / MODELS).mkdir(exist_ok=True)
        for package, reason in ((first, "first model"), (second, "better by 3 %")):
            weights.write(state / MODELS, package)
            pipeline.adopt(package, reason)
    (tmp_path / "gruard.toml").write_text(f'version = 1\n[state]\ndirectory = "{state}"\n', "utf-8")
    return first, second


def run(tmp_path: Path, *arguments: str) -> int:
    return main(["models", *arguments, "-c", str(tmp_path / "gruard.toml")])


def test_models_list_newest_first(
    tmp_path: Path,
    packages: tuple[ModelPackage, ModelPackage],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each model with its state, and why it took charge; as a table or as JSON."""
    first, second = (package.manifest.id for package in packages)
    assert run(tmp_path, "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["state"], row["reason"]) for row in rows] == [
        (second, "live", "better by 3 %"),
        (first, "retired", "first model"),
    ]
    assert all(row["activated_at"].endswith("Z") for row in rows)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(tmp_path, "list") == 0
    shown = capsys.readouterr().out
    assert second in shown
    assert "retired" in shown
    assert rows[0]["group"] in shown


def test_models_show_one_with_where_it_comes_from(
    tmp_path: Path, packages: tuple[ModelPackage, ModelPackage], capsys: pytest.CaptureFixture[str]
) -> None:
    """An id, or how it begins, shows the manifest and whether the weights can still be used."""
    manifest = packages[0].manifest
    assert run(tmp_path, "show", manifest.id, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["id"], facts["weights"], facts["state"]) == (manifest.id, "sound", "retired")
    assert (facts["cell"], facts["fields"], facts["rows"]) == ("gru", ["f0", "f1"], manifest.rows)
    (tmp_path / "state" / MODELS / f"{manifest.id}.safetensors").write_bytes(b"nothing")
    assert run(tmp_path, "show", manifest.id[:8]) == 0
    shown = capsys.readouterr().out
    assert "f0, f1" in shown
    assert "sound" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show"], "takes the id of a model"),
        (["list", "abc"], "takes no id"),
        (["show", "nonsense"], 'No model has an id that begins with "nonsense"'),
        (["show", ""], "More than one model"),
    ],
)
def test_models_asked_wrongly_says_what_is_wrong(
    tmp_path: Path,
    packages: tuple[ModelPackage, ModelPackage],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    """A model that is not there is a sentence and a hint, no traceback."""
    assert packages
    assert run(tmp_path, *arguments) == 70
    assert said in capsys.readouterr().err


def test_models_diff_shows_what_differs(
    tmp_path: Path, packages: tuple[ModelPackage, ModelPackage], capsys: pytest.CaptureFixture[str]
) -> None:
    """Facts that differ and what moved most of each device; a model beside itself differs in nothing."""
    first, second = (package.manifest.id for package in packages)
    assert run(tmp_path, "diff", first, second, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differs"] == {"id": [first, second]}
    assert found["moved"] == []  # only the gate was changed
    assert run(tmp_path, "diff", first, second) == 0
    assert f"{first} -> {second}" in capsys.readouterr().out
    assert run(tmp_path, "diff", first) == 70


def test_models_diff_names_the_device_whose_level_moved(
    tmp_path: Path, packages: tuple[ModelPackage, ModelPackage], capsys: pytest.CaptureFixture[str]
) -> None:
    """A threshold that moved is told with its device and both values."""
    tensors = sound_tensors()
    level = weights.DEVICE_PREFIX + "level"
    moved = sealed(tensors | {level: tensors[level] * 2.0})
    with opened(tmp_path / "state", UNTRAINED) as pipeline:
        weights.write(tmp_path / "state" / MODELS, moved)
        pipeline.adopt(moved, "third")
    assert run(tmp_path, "diff", packages[0].manifest.id, moved.manifest.id, "--json") == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["moved"] if row["what"] == "level"]
    assert len(rows) == min(5, len(moved.manifest.devices))
    assert all(row["second"] == pytest.approx(2 * row["first"], rel=1e-4) for row in rows)
