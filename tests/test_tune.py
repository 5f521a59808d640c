"""`gruard tune`: what it is judged on, when it claims a gain, and what it writes."""

from __future__ import annotations

import functools
import os
import signal
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support_backtest import series
from support_tune import CONFIRM, ROWS, SELECT, FakeDetector, write_history

from gruard.daemon.backtest import tune_command
from gruard.daemon.backtest.gain import PRICE, compare, worth
from gruard.daemon.backtest.held_back import Conditions, Sheet, examine, parts, places, with_faults
from gruard.daemon.backtest.readings import load as load_history
from gruard.daemon.backtest.tune_history import prepare
from gruard.daemon.backtest.tuned_file import tuned
from gruard.daemon.cli import main
from gruard.daemon.errors import ConfigError
from gruard.daemon.settings import Model, load
from gruard.models.detector import DetectorConfig
from gruard.models.errors import ModelError
from gruard.models.lockstep import score_series
from gruard.models.training.fit import FitConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from support_tune import Call

OUT = Path("gruard.tuned.toml")
SMALL = 'version = 1\n\n[model]\nhidden = 8  # as small as it gets\ncell = "gru"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a history and a configuration of a small network."""
    monkeypatch.chdir(tmp_path)
    write_history(tmp_path / "pumps.npz")
    (tmp_path / "gruard.toml").write_text(SMALL)
    return tmp_path


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    noise: Callable[[Call], float],
    wild: Callable[[Call], bool] = lambda _: False,
    before: Callable[[int], None] = lambda _: None,
) -> FakeDetector:
    detector = FakeDetector(noise, wild, before)
    monkeypatch.setattr(tune_command, "score_series", detector)
    return detector


def wide_is_good(call: Call) -> float:
    return 0.1 if call.config.hidden >= 24 else 2.0


def tune(*more: str) -> int:
    return main(["tune", "pumps.npz", "-c", "gruard.toml", "--trials", "5", *more])


# --- the whole way -------------------------------------------------------------------------------------


def test_tune_finds_and_writes_what_is_plainly_better(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wide network is plainly better here: it is found and written, and check-config agrees."""
    pretend(monkeypatch, wide_is_good)
    assert tune() == 0
    told = capsys.readouterr()
    assert "Gain: +" in told.out
    assert "5 seeds x 8 places" in told.out
    assert "µs per reading" in told.out
    assert "Not searched: [train], alerts.budget" in told.out
    assert told.err == ""  # neither optuna's own log nor a bar where there is no terminal
    assert load(OUT, {}).model.hidden >= 24
    assert "# as small as it gets" in OUT.read_text()
    assert main(["check-config", "-c", str(OUT)]) == 0


def test_tune_avoids_settings_that_alert_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking is not everything: of two that rank alike, the one without false alerts wins."""
    (folder / "gruard.toml").write_text('version = 1\n[model]\ncell = "rnn"\n')
    pretend(monkeypatch, lambda _: 0.3, wild=lambda call: call.config.cell == "rnn")
    assert tune() == 0
    assert load(OUT, {}).model.cell != "rnn"


def test_tune_same_seed_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed decides everything but the time it takes; another one tries other settings."""

    def tried(seed: str) -> tuple[list[Any], str]:
        detector = pretend(monkeypatch, wide_is_good)
        assert tune("--seed", seed, "--force") == 0
        said = capsys.readouterr().out.partition("On the readings that confirm")
        return [(call.config, call.warmup) for call in detector.calls], said[0] + said[2].partition("Gain")[2]

    first = tried("7")
    assert tried("7") == first
    assert tried("8")[0] != first[0]


def test_tune_no_gain_is_told_as_none_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where settings make no difference, the best of the trials is luck, and is told to be."""
    pretend(monkeypatch, lambda _: 1.0)
    assert tune() == 0
    told = capsys.readouterr().out
    assert "No gain that can be told from luck" in told
    assert "Nothing was written" in told
    assert not OUT.exists()


def test_tune_better_on_what_selects_alone_is_no_gain(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is better only where it was chosen is not written, unless --force says so."""
    pretend(monkeypatch, lambda call: 1.0 if call.confirms else wide_is_good(call))
    assert tune() == 0
    told = capsys.readouterr().out
    assert "No gain that can be told from luck. The interval holds 0." in told
    assert "Nothing was written. --force writes the best all the same." in told
    assert not OUT.exists()
    assert tune("--force") == 0
    assert load(OUT, {}).model.hidden >= 24


def test_tune_nothing_better_does_not_even_compare(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the present settings do best, the readings that confirm stay untouched and nothing is written."""
    detector = pretend(monkeypatch, lambda call: 0.1 if call.config.hidden == 5 else 2.0)
    (folder / "gruard.toml").write_text(SMALL.replace("8", "5"))
    assert tune("--trials", "3", "--force") == 0
    assert "Nothing that was tried did better" in capsys.readouterr().out
    assert not any(call.confirms for call in detector.calls)
    assert not OUT.exists()


def test_tune_settings_that_cannot_be_trained_cost_a_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial that fails is none; when the present settings fail, it is a mistake with a reason."""

    def fragile(call: Call) -> float:
        if call.config.cell == "lstm":
            raise ModelError("no device has the 60 normal readings that training needs")
        return wide_is_good(call)

    pretend(monkeypatch, fragile)
    assert tune() == 0
    assert load(OUT, {}).model.cell != "lstm"
    (folder / "gruard.toml").write_text(SMALL.replace("gru", "lstm"))
    assert tune("--force") == 78
    assert "the present settings cannot be tried: no device has the 60" in capsys.readouterr().err


def test_tune_stops_when_time_is_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However little time there is, something is tried; that time was up is told."""
    pretend(monkeypatch, lambda _: 1.0)
    assert tune("--minutes", "0.000001") == 0
    told = capsys.readouterr().out
    assert "1 settings tried" in told
    assert "Time was up before all trials were done" in told


@pytest.mark.slow
def test_tune_with_the_real_detector_same_seed_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two whole searches, real training and all, come to the same numbers to the last digit told."""
    monkeypatch.setattr("gruard.models.training.fit.FitConfig", functools.partial(FitConfig, steps=5))
    for name, count in (("FINALISTS", 1), ("LOOKS", 1), ("SEEDS", 3)):
        monkeypatch.setattr(tune_command, name, count)
    (folder / "gruard.toml").write_text("version = 1\n[model]\nwarmup_readings = 100\n")
    told = []
    for _ in range(2):
        assert tune("--trials", "1", "--device", "pump-0", "--force") == 0
        table = capsys.readouterr().out.partition("On the readings that confirm")
        told.append((table[0], table[2].partition("Gain")[2]))
        assert "1 settings tried" in table[0]
    assert told[0] == told[1]


# --- interrupted ---------------------------------------------------------------------------------------


def interrupt(*at: int) -> Callable[[int], None]:
    """Ctrl-C in calls of the detector with these numbers."""

    def before(call: int) -> None:
        for _ in range(at.count(call)):
            os.kill(os.getpid(), signal.SIGINT)

    return before


def test_tune_interrupted_keeps_the_best_so_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the search; the best so far is still compared before it is written, with status 130."""
    detector = pretend(monkeypatch, lambda call: 0.1 if call.config.hidden != 8 else 2.0, before=interrupt(4))
    assert tune() == 130
    told = capsys.readouterr()
    assert "Stopping the search" in told.err
    assert "2 settings tried" in told.out
    assert "Interrupted: not everything was tried" in told.out
    assert "Gain: +" in told.out
    assert sum(call.confirms for call in detector.calls) == 10
    assert load(OUT, {}).model.hidden != 8


def test_tune_interrupted_in_the_comparison_claims_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the comparison leaves too few seeds for a verdict: what was better is told, not written."""
    calls = 1 + 5 + 4 * 2 + 3
    pretend(monkeypatch, wide_is_good, before=interrupt(calls))
    assert tune() == 130
    told = capsys.readouterr().out
    assert "No gain that can be told from luck. The best was not confirmed" in told
    assert not OUT.exists()


def test_tune_interrupted_at_once_has_nothing_to_keep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the present settings are judged there is nothing; a second Ctrl-C does not wait for anything."""
    pretend(monkeypatch, lambda _: 1.0, before=interrupt(1))
    assert tune() == 130
    assert "Interrupted before anything was tried" in capsys.readouterr().err
    detector = pretend(monkeypatch, wide_is_good, before=interrupt(3, 3))
    assert tune() == 130
    assert len(detector.calls) == 3
    assert not OUT.exists()


# --- what it is judged on ------------------------------------------------------------------------------


def test_parts_come_one_behind_the_other_and_never_meet(folder: Path) -> None:
    """Select and confirm are apart in time, and every row that teaches lies before its part."""
    select, confirm = parts(load_history(folder / "pumps.npz"), labelled=False)
    assert [(p.first, p.series.rows) for p in select] == [(SELECT, CONFIRM)] * 2
    assert [(p.first, p.series.rows) for p in confirm] == [(CONFIRM, ROWS)] * 2
    for part in (*select, *confirm):
        assert part.blocks[0][0] == part.first
        assert part.blocks[-1][1] == part.series.rows
        assert all(before[1] == after[0] for before, after in zip(part.blocks, part.blocks[1:], strict=False))


def test_faults_lie_in_the_held_back_rows_alone(folder: Path) -> None:
    """No reading outside of a labelled fault differs, none that teaches, and every block has its fault."""
    select, _ = parts(load_history(folder / "pumps.npz"), labelled=False)
    for part in with_faults(select, (1, 2)):
        assert part.faulty is not None
        labels = part.faulty.labels
        assert labels is not None
        assert not labels[: part.first].any()
        assert all(labels[a:b].any() for a, b in part.blocks)
        changed = (part.faulty.history.values != part.series.history.values).any(axis=1)
        assert changed.any()
        assert not (changed & ~labels).any()
    (one, _), (other, _) = (with_faults(select, (1, k)) for k in (3, 4))
    assert one.faulty is not None
    assert other.faulty is not None
    assert not np.array_equal(one.faulty.history.values, other.faulty.history.values)


def test_trained_rows_of_original_and_copy_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the warm-up, a network never learns from a row with a fault in it, nor from a later part."""
    detector = pretend(monkeypatch, lambda _: 1.0)
    assert tune("--trials", "4") == 0
    assert len({call.warmup for call in detector.calls}) > 2
    for call in detector.calls:
        for original, copy in zip(call.histories[:2], call.histories[2:], strict=True):
            assert np.array_equal(original.values[: call.warmup], copy.values[: call.warmup])
            assert not np.array_equal(original.values, copy.values)


def test_prepare_goes_by_labels_where_there_are_enough() -> None:
    """Labels are used as they are: each block has whole anomalies, and nothing is put in."""
    events = [(1100, 1120), *((first, first + 20) for first in (1530, 1630, 1730, 1830, 1930))]
    ground = prepare(Path("x"), [series(2000, labels=events)], 400, 0)
    assert ground.labelled
    assert places(ground.confirm(0)) == 5
    (part,) = ground.confirm(1)
    assert part.faulty is None
    assert part.series.labels is not None
    assert [part.series.labels[a:b].sum() for a, b in part.blocks] == [21] * 5


def test_parts_leave_out_where_nearly_all_is_anomalous() -> None:
    """A block without normal rows would rank perfectly whatever the scores are."""
    select, confirm = parts([series(2000, labels=[(990, 1480), (1600, 1700)])], labelled=True)
    assert select == []
    assert [part.blocks for part in confirm] == [((1500, 2000),)]


def test_prepare_few_labels_are_told_and_kept_away_from() -> None:
    """With too few labels faults are put in, but not into blocks in which something is wrong already."""
    ground = prepare(Path("x"), [series(4000, labels=[(2100, 2200), (3300, 3330)])], 400, 0)
    assert not ground.labelled
    assert any("Too few labelled anomalies" in note for note in ground.notes)
    for part in (*ground.select(0), *ground.confirm(0)):
        assert part.series.labels is not None
        assert not any(part.series.labels[a:b].any() for a, b in part.blocks)


def test_examine_real_detector_repeats_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same sheet, with a number for every place; scoring was timed."""
    monkeypatch.setattr("gruard.models.training.fit.FitConfig", functools.partial(FitConfig, steps=5))
    write_history(folder / "short.npz", 1, 1600)
    select, _ = parts(load_history(folder / "short.npz"), labelled=False)
    held, shares = with_faults(select, (0,)), list[float]()

    def sheet() -> Sheet:
        model = Model(hidden=8, warmup_readings=100)
        conditions = Conditions(DetectorConfig(), 60.0, score_series)
        found = examine(held, model, conditions, 0, shares.append, lambda: False)
        assert found is not None
        return found

    one, again = sheet(), sheet()
    assert np.array_equal(one.vus_pr, again.vus_pr)
    assert ((one.vus_pr > 0.1) & (one.vus_pr <= 1)).all()
    assert one.quiet_rows.tolist() == [200, 200]
    assert one.allowed == pytest.approx(np.full(2, 200 * 10 / (7 * 86_400)))
    assert 0 < one.cost_us < 1e6
    assert shares[-1] == 1.0


def test_tune_compares_in_pairs_on_several_seeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed trains both settings, on the same readings with the same faults, which no other seed has."""
    detector = pretend(monkeypatch, wide_is_good)
    assert tune("--trials", "4") == 0
    confirming = [call for call in detector.calls if call.confirms]
    assert [call.config.hidden == 8 for call in confirming] == [True, False] * 5
    pairs = list(zip(confirming[::2], confirming[1::2], strict=True))
    assert len({present.config.seed for present, _ in pairs}) == 5
    for present, best in pairs:
        assert present.config.seed == best.config.seed
        for one, other in zip(present.histories, best.histories, strict=True):
            assert np.array_equal(one.values[present.warmup :], other.values[best.warmup :])
    faulty = [present.histories[-1].values[present.warmup :] for present, _ in pairs]
    assert not any(np.array_equal(faulty[0], other) for other in faulty[1:])


# --- when a gain is claimed ----------------------------------------------------------------------------


def sheet_of(vus: NDArray[np.float64], false: float = 0.0, allowed: float = 0.0) -> Sheet:
    rows = np.full(len(vus), 500.0)
    return Sheet(vus, np.full(len(vus), false), rows, np.full(len(vus), allowed), 1.0)


def test_worth_is_ranking_less_alerts_beyond_the_budget() -> None:
    """Two false alerts in 500 readings, half of one accepted: 30 in 10,000 too many, at PRICE each."""
    (vus, rate) = (np.array([0.5, 0.7, np.nan]), worth([sheet_of(np.array([0.6]), 2.0, 0.5)]))
    assert worth([sheet_of(vus)]).worth == pytest.approx(0.6)
    assert rate.worth == pytest.approx(0.6 - 30 * PRICE)
    assert rate.false_per_10k == pytest.approx(40.0)
    assert worth([sheet_of(np.array([0.6]), 0.4, 0.5)]).worth == pytest.approx(0.6)


def test_compare_tells_a_gain_that_is_everywhere() -> None:
    """The same gain at every place and for every seed is certain; its interval is narrow and holds it."""
    rng = np.random.default_rng(0)
    before = [sheet_of(rng.uniform(0.3, 0.6, 8)) for _ in range(5)]
    after = [sheet_of(sheet.vus_pr + 0.05 + 0.01 * rng.standard_normal(8)) for sheet in before]
    gain = compare(before, after)
    assert gain is not None
    assert gain.certain
    assert gain.low < 0.05 < gain.high
    assert gain.high - gain.low < 0.05
    assert (gain.seeds, gain.places) == (5, 8)
    assert gain.mean == pytest.approx(gain.new.worth - gain.present.worth)


@pytest.mark.parametrize(("seeds", "places"), [(0.1, 0.0), (0.0, 0.1), (0.05, 0.05)])
def test_compare_seldom_claims_what_is_not_there(seeds: float, places: float) -> None:
    """Where seeds or places differ by luck, at most one interval in twenty lies above 0."""
    rng, claimed = np.random.default_rng(1), 0
    for _ in range(100):
        luck = seeds * rng.standard_normal((5, 1)) + places * rng.standard_normal((1, 6))
        luck = luck + 0.05 * rng.standard_normal((5, 6))
        before = [sheet_of(np.full(6, 0.5)) for _ in range(5)]
        gain = compare(before, [sheet_of(0.5 + row) for row in luck])
        assert gain is not None
        claimed += gain.certain
    assert claimed <= 5


def test_compare_of_too_few_is_no_verdict() -> None:
    """Two seeds, or three places with anything to rank, say nothing."""
    vus = np.array([0.5, 0.6, 0.7, 0.8])
    assert compare([sheet_of(vus)] * 2, [sheet_of(vus + 0.1)] * 2) is None
    vus[0] = np.nan
    assert compare([sheet_of(vus)] * 5, [sheet_of(vus + 0.1)] * 5) is None


# --- what is written -----------------------------------------------------------------------------------

WANTED = Model(cell="lstm", hidden=48, layers=2, dropout=0.15, warmup_readings=900)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (SMALL, "# as small as it gets"),
        ('version = 1  # mine\n[log]\nlevel = "debug"', "# mine"),
        ('version = 1\n[model] # empty\n[log]\nlevel = "debug"\n', "[model] # empty"),
        ("version = 1\nmodel.hidden = 8 # dotted\nmodel.layers = 1\nmodel.cell='gru' # c\n", "= 48 # dotted"),
        ("version = 1\r\n[model]\r\nhidden = 8 # dos\r\n", "# dos"),
        ('version = 1\nmodel = { hidden = 8 }\n[log]\nlevel = "debug"\n', "[log]"),
        ('version = 1\n[model]\ncell = """gru"""\n', "lstm"),
        ('version = 1\n[[sources]]\ntopic = "a/{device}"\n', "[[sources]]"),
        ("version = 1\nmodel.hidden = 8\n", "48"),
    ],
)
def test_tuned_changes_the_model_and_nothing_else(text: str, kept: str) -> None:
    """However the table is written, the rest reads as before, and comments stay where lines can be edited."""
    new = tuned(text, WANTED)
    before, after = tomllib.loads(text), tomllib.loads(new)
    assert Model.model_validate(after.pop("model")) == WANTED
    before.pop("model", None)
    assert after == before
    assert kept in new


def test_tuned_leaves_lines_alone_that_need_not_change() -> None:
    """What the winner shares with the present settings is not even written down."""
    assert tuned(SMALL, Model(hidden=9)) == SMALL.replace("8", "9")
    assert tomllib.loads(tuned(None, WANTED)) == {"version": 1, "model": WANTED.model_dump()}


def test_tune_result_can_be_read_by_nobody_else_than_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration may hold a password; what the environment would override is told."""
    pretend(monkeypatch, wide_is_good)
    (folder / "gruard.toml").chmod(0o640)
    monkeypatch.setenv("GRUARD_MODEL__LAYERS", "1")
    assert tune() == 0
    assert stat.S_IMODE(OUT.stat().st_mode) == 0o640
    assert "The environment overrides it: GRUARD_MODEL__LAYERS" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["gruard.toml", OUT.name, "pumps.npz"]


def test_tune_never_overwrites_without_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not what is there at the start, and not what comes to be in the meantime."""
    detector = pretend(monkeypatch, wide_is_good)
    OUT.write_text("mine")
    assert tune() == 78
    assert detector.calls == []
    assert "exists: name another file, or overwrite it with --force" in capsys.readouterr().err
    OUT.unlink()
    pretend(monkeypatch, wide_is_good, before=lambda call: OUT.write_text("mine") if call == 5 else None)
    assert tune() == 78
    assert "cannot be written: File exists" in capsys.readouterr().err
    assert OUT.read_text() == "mine"
    assert tune("--force") == 0
    assert load(OUT, {}).model.hidden >= 24


# --- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.npz"], "gone.npz: cannot be read: No such file or directory"),
        ([], "state: cannot be read: No such file or directory (the state directory: name a recording"),
        (["short.npz"], "too little history: pump-1 has 700 readings, and 800 of a device are needed"),
        (["short.npz", "--device", "pump-9"], 'has no device "pump-9", did you mean "pump-'),
        (["few.npz"], "too little history: 1,500 readings of 1 devices, and about 2,400"),
        (
            ["blind.npz"],
            "blind.npz: no fault can be put into the readings that select: nothing is seen there",
        ),
        (["pumps.npz", "--trials", "0"], "--trials: must be 1..10000, not 0"),
        (["pumps.npz", "--minutes", "nan"], "--minutes: must be above 0 and at most 10000, not nan"),
        (["pumps.npz", "--seed", "-1"], "--seed: must be 0..4294967295, not -1"),
        (["pumps.npz", "--out", "no/such/folder.toml"], "its directory is missing or cannot be written to"),
        (["pumps.npz", "--out", "."], "--out: .: is a directory: name a file in it"),
        (["pumps.npz", "-c", "gone.toml"], "gone.toml"),
        (["pumps.npz", "-c", "long.toml"], "3,000 of a device are needed (half of them teach: at least"),
    ],
)
def test_tune_mistake_exits_78_with_a_sentence(
    folder: Path, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What is wrong is told with the file or the option and what would help, before any work is done."""
    monkeypatch.setenv("GRUARD_STATE__DIRECTORY", "state")
    detector = pretend(monkeypatch, lambda _: 1.0)
    write_history(folder / "few.npz", 1, 1500)
    np.savez(folder / "short.npz", **{"pump-1|x": np.ones((700, 1)), "pump-2|x": np.ones((90, 1))})
    np.savez(folder / "blind.npz", x=np.where(np.arange(3000) < 1400, 1.0, np.nan))
    (folder / "long.toml").write_text("version = 1\n[model]\nwarmup_readings = 1500\n")
    assert main(["tune", *arguments]) == 78
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert detector.calls == []


def test_tune_without_optuna_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search is an extra."""
    monkeypatch.setattr(tune_command, "find_spec", lambda _: None)
    assert tune() == 78
    assert "pip install 'gruard[tune]'" in capsys.readouterr().err


def test_prepare_of_many_devices_looks_at_some() -> None:
    """A fleet and a long past are looked at in part, and that is told."""
    ground = prepare(Path("x"), [series(900, name=f"pump-{n}") for n in range(20)], 400, 0)
    assert len(ground.series) == 8
    assert any("Of 20 devices, 8 were looked at" in note for note in ground.notes)
    ground = prepare(Path("x"), [series(12_000)], 400, 0)
    assert ground.series[0].rows == 10_000
    assert ground.series[0].history.time_s[-1] == series(12_000).history.time_s[-1]
    with pytest.raises(ConfigError, match="too little history"):
        prepare(Path("x"), [series(900)], 400, 0)
