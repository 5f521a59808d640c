"""`gruard devices list`: what a device stands on, and since when."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support_engine import plant_rows, readings_of
from support_models import sealed_model
from support_pipeline import UNTRAINED, opened, play, scores

from gruard.daemon.cli import main
from gruard.daemon.core.engine import group_name
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.enrolment import history_of
from gruard.models import weights
from gruard.models.loan import share_of

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.pipeline import Pipeline

FIELDS = ("f0", "f1", "f2")
GROUP = group_name("plant", FIELDS)
NEW = readings_of("new", plant_rows(160, 9))


def taught(pipeline: Pipeline, state: Path) -> None:
    """Two devices, and a model that was trained on them in charge."""
    for n in range(2):
        play(pipeline, readings_of(f"d{n}", plant_rows(300, n)))
    histories = {f"d{n}": history_of(pipeline.database.history(f"d{n}", FIELDS, 300)) for n in range(2)}
    package = sealed_model(GROUP, histories)
    (state / MODELS).mkdir(exist_ok=True)
    weights.write(state / MODELS, package)
    pipeline.adopt(package, "first")
    pipeline.commit()


def listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    (tmp_path / "gruard.toml").write_text(f'version = 1\n[state]\ndirectory = "{tmp_path / "state"}"\n')
    assert main(["devices", "list", "--json", "-c", str(tmp_path / "gruard.toml")]) == 0
    return {row["device"]: row for row in json.loads(capsys.readouterr().out)}


def test_devices_list_shows_what_a_device_stands_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new one on a loan, with the time that it took; the trained ones on their own."""
    state = tmp_path / "state"
    with opened(state, UNTRAINED) as pipeline:
        taught(pipeline, state)
        play(pipeline, NEW)
        play(pipeline, readings_of("newest", plant_rows(5, 10)))
        pipeline.checkpoint()
    rows = listed(tmp_path, capsys)
    new, known, newest = rows["new"], rows["d0"], rows["newest"]
    assert (new["state"], new["borrowed"]) == ("ready", pytest.approx(share_of(100), abs=0.01))
    assert (new["first_score_s"], new["ready_s"]) == (10.0, 50.0)
    assert new["ready_at"] == "1970-01-01T00:17:30.000Z"
    assert known["borrowed"] == 0.0
    assert (newest["first_score_s"], newest["ready_s"], newest["ready_at"]) == (None, None, None)


def test_loan_is_the_same_after_a_recovery(tmp_path: Path) -> None:
    """Killed in the middle of its loan, a device goes on as the one that was not."""
    told = []
    for name, cut in (("whole", None), ("killed", 80)):
        state = tmp_path / name
        with opened(state, UNTRAINED) as pipeline:
            taught(pipeline, state)
            pipeline.checkpoint()
            found = scores(play(pipeline, NEW[:cut]))
        if cut is not None:
            with opened(state, UNTRAINED) as pipeline:
                found += scores(play(pipeline, NEW[cut:]))
                assert pipeline.engine.devices["new"].borrowed == pytest.approx(share_of(100))
                assert pipeline.engine.devices["new"].ready_s == 50.0
        told.append(found[10:])
    assert told[0] == told[1]
