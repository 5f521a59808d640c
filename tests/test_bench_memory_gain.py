"""The benchmark of the recurrent part: its measures on known scores, its cases, and a little of it run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gruard.models import Detector
from gruard.models.plants import faults

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "bench"))  # where the script itself finds its parts
bench = importlib.import_module("bench_recurrent")
settings = importlib.import_module("recurrent_settings")
table = importlib.import_module("recurrent_table")


def compared(
    without: list[float], live: list[float], before: float = 10.0, after: float = 10.0
) -> dict[str, Any]:
    """A setting's figures, one seed for each VUS-PR."""

    def figures(volumes: list[float], episodes: float) -> dict[str, Any]:
        return {
            "vus_pr": volumes,
            "false_episodes": [episodes] * len(volumes),
            "by_kind": [{"shift": v} for v in volumes],
            "fit_cpu_s": [1.0] * len(volumes),
        }

    return {
        "events": [20] * len(live),
        "systems": {"without": figures(without, before), "gru": figures(live, after)},
    }


def test_false_episodes_at_each_recall_of_a_known_series() -> None:
    """Two events peak at 9 and 5, a false rise at 7 lies between: none at the first event, one at both."""
    labels, scores = np.zeros(400, bool), np.zeros(400)
    labels[100:110] = labels[300:310] = True
    scores[105], scores[200], scores[305] = 9.0, 7.0, 5.0
    assert bench.false_episodes([(labels, scores, 50)]).tolist() == [0.0, 1.0]


def test_false_episodes_share_one_threshold_over_series() -> None:
    """What one series needs to find its event raises false episodes in the other."""
    labels, quiet = np.zeros(300, bool), np.zeros(300, bool)
    labels[100:110] = True
    scores, loud = np.zeros(300), np.zeros(300)
    scores[105], loud[[60, 200]] = 1.0, 2.0
    assert bench.false_episodes([(labels, scores, 50), (quiet, loud, 50)]).tolist() == [2.0]


def test_mean_between_leaves_out_the_easiest_and_the_hardest_events() -> None:
    """Of ten events the first three and the last do not count."""
    counts = np.array([100.0, 100.0, 100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])
    assert bench.mean_between(counts) == pytest.approx(3.5)


def test_cases_hold_one_kind_each_after_the_warm_up_only() -> None:
    """Leading rows are the device's own to the bit, labels begin after them, and every kind has its case."""
    (group,) = settings.SETTINGS["fleet: batch"](Path(), 0)
    device = group.devices[0]
    assert [case.kind for case in device.cases] == list(faults.KINDS)
    for case in device.cases:
        assert np.array_equal(case.values[: group.warmup], device.values[: group.warmup])
        assert not case.labels[: group.warmup].any()
        changed = (case.values != device.values).any(axis=1)
        assert changed.any()
        assert not changed[~case.labels].any()


def test_cases_leave_out_what_one_field_cannot_carry() -> None:
    """There is no link between fields where there is one field."""
    values = np.random.default_rng(0).normal(size=(1000, 1))
    assert "link" not in {case.kind for case in settings.cases(values, 300, (0,))}


def test_closed_gate_silences_the_network_and_opens_again() -> None:
    """Inside, any two networks score alike; behind it they differ."""
    group = settings.shortened(settings.SETTINGS["fleet: batch"](Path(), 0)[0], 2000, 200)
    configs = [bench.FitConfig(seed=seed, steps=60) for seed in (0, 1)]
    with bench.closed_gate():
        silent = [bench.scored_cases(group, config).scores[0] for config in configs]
    heard = [bench.scored_cases(group, config).scores[0] for config in configs]
    assert np.array_equal(*silent)
    assert not np.array_equal(*heard)


def test_scored_cases_are_those_of_the_detector() -> None:
    """One device and one case get the scores that the same readings get one by one from `Detector`."""
    group = settings.shortened(settings.SETTINGS["fleet: batch"](Path(), 0)[0], judged=100)
    (device,) = group.devices
    case = device.cases[0]
    detector = Detector(case.values.shape[1], warmup=group.warmup)
    told = [detector.update(t, row).value for t, row in zip(device.time_s.tolist(), case.values, strict=True)]
    scores = bench.scored_cases(group, bench.FitConfig()).scores[0]
    assert scores[: group.warmup].tolist() == [0.0] * group.warmup
    assert scores[group.warmup :] == pytest.approx(told[group.warmup :], abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (compared([0.5, 0.5], [0.53, 0.52]), "pays"),
        (compared([0.5], [0.505]), "ties"),
        (compared([0.5], [0.5], before=10.0, after=8.0), "pays"),
        (compared([0.5], [0.5], before=0.0, after=0.0), "ties"),
        (compared([0.5], [0.49], before=10.0, after=1.0), "loses"),
    ],
)
def test_verdict_follows_the_bars(setting: dict[str, Any], expected: str) -> None:
    """A gain in either figure pays, a loss of VUS-PR outweighs it."""
    assert table.verdict(setting, "gru") == expected


def test_main_refuses_a_folder_without_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 78 with the missing files' names, and nothing is kept."""
    out = tmp_path / "out"
    assert bench.main([str(tmp_path), "--only", "labelled: skab", "--out", str(out)]) == 78
    assert "skab.npz" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_main_replaces_only_what_it_is_told_to(tmp_path: Path) -> None:
    """A second run keeps the first one's setting, and the tables name both."""
    few = ["--quick", "--seeds", "1", "--out", str(tmp_path)]
    for plant in ("delayed", "batch"):
        assert bench.main([str(tmp_path), "--only", f"fleet: {plant}", *few]) == 0
    document = json.loads((tmp_path / "recurrent.json").read_text("utf-8"))
    assert list(document["settings"]) == ["fleet: batch", "fleet: delayed"]
    assert document["settings"]["fleet: batch"]["systems"].keys() == {
        "without",
        "gru",
        "gru, longer",
        "lstm",
        "rnn",
        "mlp",
    }
    told = (tmp_path / "recurrent.md").read_text("utf-8")
    assert "| fleet: batch |" in told
    assert "| fleet: delayed |" in told
