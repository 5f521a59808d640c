"""The quality benchmark: suites are cut as told, known scores give known figures, nothing is run twice."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gruard.models import Detector, DetectorConfig
from gruard.models.training import candidate as gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT.parent / "shared" / "data"
SCRIPT = ROOT / "bench" / "bench_quality.py"

sys.path.append(str(SCRIPT.parent))  # where the script itself finds its parts
bench = importlib.import_module("bench_quality")
contenders, figures, peers, run, suites, table, trace = (
    importlib.import_module(f"quality.{name}")
    for name in ("contenders", "figures", "peers", "run", "suites", "table", "trace")
)


def stream(labels: NDArray[np.bool_], warmup: int, values: NDArray[Any] | None = None) -> Any:
    """A recording of one field (T,), a row a second."""
    rows = len(labels)
    x = np.sin(np.arange(rows) / 5.0) if values is None else values
    return suites.Stream("s", np.arange(rows) * 1.0, x.astype(np.float32)[:, None], labels, warmup, ())


def scores(values: NDArray[Any], **kwargs: Any) -> Any:
    known = {"onsets": None, "alarms": None, "in_sample": None, "microseconds": 1.0, "fit_seconds": 0.0}
    return trace.Trace(np.asarray(values, np.float64), **(known | kwargs))


def faulty(rows: int = 400, first: int = 250, last: int = 299) -> NDArray[np.bool_]:
    labels = np.zeros(rows, bool)
    labels[first : last + 1] = True
    return labels


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Tiny archives of the recordings' form: what is kept and what is left out of every suite."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    entries: dict[str, list[dict[str, Any]]] = {
        "skab": [{"name": "free", "warmup": 40, "events": 0}, {"name": "valve/0", "warmup": 40, "events": 1}],
        "nab": [
            {"name": "member", "warmup": 30, "tsb": "x", "tsb_offset": 1, "tsb_train": 50},
            {"name": "other", "warmup": 30},
        ],
        "msl": [
            {"name": "member", "warmup": 60, "tsb": "x", "tsb_offset": 60, "tsb_train": 25},
            {"name": "other", "warmup": 60},
        ],
        "smd": [
            {"name": "machine-1-6", "warmup": 100, "dt": 60},
            {"name": "machine-9-9", "warmup": 100, "dt": 60},
        ],
    }
    rows = 200
    for archive, manifest in entries.items():
        arrays: dict[str, Any] = {"manifest": np.frombuffer(json.dumps(manifest).encode(), np.uint8)}
        for n, entry in enumerate(manifest):
            arrays[f"{entry['name']}|x"] = np.random.default_rng(n).normal(size=(rows, 2)).astype(np.float32)
            arrays[f"{entry['name']}|y"] = faulty(rows, 150, 160).astype(np.uint8)
            if archive == "nab":
                arrays[f"{entry['name']}|t"] = 300.0 * np.arange(rows)
                entry["windows"] = [[150, 160]]
        arrays["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
        np.savez(folder / f"{archive}.npz", **arrays)
    return folder


def test_load_suites_are_cut_as_told(archives: Path) -> None:
    """Each suite keeps its own streams, drops the rows before its first and takes its own warm-up."""
    cut = {
        name: [(s.name, s.rows, s.warmup, len(s.windows)) for s in suites.load(archives, name)]
        for name in suites.SUITES
    }
    assert cut == {
        "skab": [("valve/0", 200, 40, 0)],
        "nab": [("member", 199, 50, 0)],
        "msl": [("member", 140, 25, 0)],
        "smd": [("machine-1-6", 100, 500, 0)],
        "nab25": [("member", 200, 30, 1), ("other", 200, 30, 1)],
    }


def test_load_rows_and_times_stay_together(archives: Path) -> None:
    """Dropping rows drops their labels and times too; a step that is not told is a second."""
    (nab,), (msl,), (smd,) = (suites.load(archives, name) for name in ("nab", "msl", "smd"))
    assert np.flatnonzero(nab.labels)[0] == 149
    assert nab.time_s[0] == 300.0
    assert np.diff(msl.time_s).tolist() == [1.0] * (msl.rows - 1)
    assert smd.time_s[0] == 60 * 100


@pytest.mark.recordings
def test_load_real_recordings_match_their_catalogue() -> None:
    """TSB-AD's members have the warm-up and the first anomalous row that their catalogue names tell.

    Its names of NAB's members count from the row that it drops as a header.
    """
    if not (RECORDINGS / "nab.npz").exists():
        pytest.skip("the labelled recordings are not beside the checkout")
    counts = {name: len(suites.load(RECORDINGS, name)) for name in suites.SUITES}
    assert counts == {"skab": 16, "nab": 11, "msl": 14, "smd": 3, "nab25": 25}
    for suite, dropped in (("nab", 1), ("msl", 0)):
        with np.load(RECORDINGS / f"{suite}.npz") as arrays:
            names = {m["name"]: m.get("tsb", "") for m in json.loads(arrays["manifest"].tobytes())}
        for s in suites.load(RECORDINGS, suite):
            warmup, first = map(int, re.findall(r"_tr_(\d+)_1st_(\d+)", names[s.name])[0])
            assert (s.warmup, np.flatnonzero(s.labels)[0] + dropped) == (warmup, first), s.name
    assert {s.warmup for s in suites.load(RECORDINGS, "skab")} == {400}
    assert [s.warmup for s in suites.load(RECORDINGS, "smd")] == [500, 5923, 738]


def test_main_without_recordings_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without the archives is a mistake with a name, not a traceback."""
    assert bench.main([str(tmp_path)]) == 78
    told = capsys.readouterr().err
    assert "no skab.npz, nab.npz, msl.npz, smd.npz" in told
    assert str(tmp_path) in told


def test_load_archive_that_is_none_is_an_error(archives: Path) -> None:
    """A file that is no archive is told by name."""
    (archives / "skab.npz").write_bytes(b"no archive")
    with pytest.raises(suites.RecordingsError, match=r"skab\.npz is not an archive"):
        suites.load(archives, "skab")


def test_figures_perfect_detector_gets_full_marks() -> None:
    """Scores and alarms that equal the labels find every event at once, without a false word."""
    labels = faulty()
    found = figures.figures("skab", [(stream(labels, 100), scores(labels, alarms=labels))])
    assert (found["auc_zero"], found["auc_scored"], found["budget_recall"]) == (1.0, 1.0, 1.0)
    assert (found["hit"], found["events"], found["delay"], found["false_per_10k"]) == (1, 1, 0.0, 0.0)
    assert (found["f1"], found["far"], found["mar"]) == (1.0, 0.0, 0.0)


def test_figures_known_alarms_give_known_rates() -> None:
    """20 late rows of a 50-row event and one false row are what the figures say they are."""
    labels, alarms = faulty(), faulty(first=270, last=289)
    alarms[150] = True
    found = figures.figures("skab", [(stream(labels, 100), scores(labels, alarms=alarms))])
    assert found["delay"] == 20.0
    assert found["mar"] == 60.0
    assert found["far"] == pytest.approx(100 / 250)
    assert found["f1"] == pytest.approx(2 * 20 / (2 * 20 + 1 + 30))
    quiet = 300 - 50 - 30  # behind the warm-up, without the event and the rows that excuse a late alarm
    assert found["false_per_10k"] == pytest.approx(10_000 / quiet)


def test_figures_warmup_rows_count_by_convention() -> None:
    """A warm-up that is scored high costs nothing under one convention and half under the other."""
    labels = faulty()
    values = np.where(labels, 1.0, 0.0)
    in_sample = np.zeros(100)
    in_sample[:50] = 1.0
    found = figures.figures("nab", [(stream(labels, 100), scores(values, in_sample=in_sample))])
    assert found["auc_zero"] == 1.0
    assert found["auc_scored"] == 0.5
    assert "f1" not in found


def test_figures_negative_scores_do_not_make_the_warmup_loud() -> None:
    """A detector whose scores are below zero does not get its silent warm-up ranked above them."""
    labels = faulty()
    found = figures.figures("msl", [(stream(labels, 100), scores(np.where(labels, -1.0, -2.0)))])
    assert found["auc_zero"] == 1.0


def test_figures_nab_hears_onsets_and_makes_them_for_others() -> None:
    """A score that stays up through an event earns by its first row alone, as an onset score does."""
    labels = faulty()
    one = suites.Stream("s", np.arange(400.0), np.zeros((400, 1), np.float32), labels, 100, ((250, 299),))
    onset = np.zeros(400)
    onset[250] = 1.0
    stays = figures.figures("nab25", [(one, scores(np.arange(400) >= 250))])
    told = figures.figures("nab25", [(one, scores(np.zeros(400), onsets=onset))])
    as_floor = figures.figures("nab25", [(one, scores(np.arange(400) >= 250))], floor=True)
    assert stays["nab_standard"] == told["nab_standard"] == pytest.approx(100.0)
    assert as_floor["nab_standard"] < 95.0


def test_loudest_speaks_where_a_score_exceeds_its_past() -> None:
    """Only values above all of the last rows are kept; others fall to the least of all."""
    assert figures.loudest(np.array([1.0, 3, 2, 3, 3, 1, 4]), 3).tolist() == [1, 3, 1, 1, 1, 1, 4]
    assert figures.loudest(np.array([5.0, 1, 1, 2]), 2).tolist() == [5, 1, 1, 2]


class Fake:
    """A detector whose score is the value itself; counts how often it is asked, and may fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fail_at = ""
        self.slow = False

    def score(self, s: Any, seed: int, _seconds_left: float) -> Any:
        if self.slow:
            raise trace.TooSlowError
        if s.name == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(s.name)
        return scores(s.values[:, 0] + seed)

    def contender(self, **kwargs: Any) -> Any:
        known = {"settings": {}, "sources": (), "packages": ("numpy",)} | kwargs
        return trace.Contender("fake", "peer", score=self.score, **known)


def runner(archives: Path, cap_s: float = 60.0) -> Any:
    return run.Runner(archives, archives.parent / "cache", cap_s)


def test_runner_interrupted_run_goes_on_where_it_was(archives: Path) -> None:
    """Streams that were scored before an interruption are not scored again."""
    fake = Fake()
    unit, it = run.Unit(fake.contender(), "nab25", 0), runner(archives)
    fake.fail_at = "other"
    with pytest.raises(KeyboardInterrupt):
        list(it.run([unit], 1))
    assert it.traces(unit) is None
    fake.fail_at = ""
    (done,) = it.run([unit], 1)
    assert (fake.asked, done.fresh, done.reason) == (["member", "other"], 1, "")
    (again,) = it.run([unit], 1)
    assert (fake.asked, again.fresh) == (["member", "other"], 0)
    for s, kept in it.traces(unit):
        assert kept.values.tolist() == s.values[:, 0].tolist()
        assert kept.alarms is None


@pytest.mark.parametrize("change", ["settings", "sources", "recording", "version"])
def test_runner_what_scores_depend_on_runs_again(
    archives: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed setting, source file, recording or installed version makes the cached scores stale."""
    fake = Fake()
    source = archives.parent / "code.py"
    source.write_text("one", "utf-8")
    list(runner(archives).run([run.Unit(fake.contender(sources=(source,)), "skab", 0)], 1))
    settings = {"trees": 2} if change == "settings" else {}
    if change == "sources":
        source.write_text("two", "utf-8")
        trace.digest.cache_clear()
    if change == "version":
        monkeypatch.setattr(trace, "version_of", lambda _package: "99")
    if change == "recording":
        with np.load(archives / "skab.npz") as arrays:
            kept = dict(arrays)
        kept["valve/0|x"] = kept["valve/0|x"] + 1
        np.savez(archives / "skab.npz", **kept)
    unit = run.Unit(fake.contender(settings=settings, sources=(source,)), "skab", 0)
    assert runner(archives).traces(unit) is None
    list(runner(archives).run([unit], 1))
    assert len(fake.asked) == 2


def test_runner_torn_cache_file_runs_again(archives: Path) -> None:
    """A file that was cut short is no trace."""
    fake, it = Fake(), runner(archives)
    unit = run.Unit(fake.contender(), "skab", 0)
    list(it.run([unit], 1))
    (path,) = it.cache.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    list(it.run([unit], 1))
    assert len(fake.asked) == 2


def test_runner_hopeless_detector_is_given_up_until_it_may_take_longer(archives: Path) -> None:
    """A detector that ran out of time is not tried again under the same cap, but is under a larger one."""
    fake = Fake()
    fake.slow = True
    unit = run.Unit(fake.contender(), "skab", 0)
    (done,) = runner(archives).run([unit], 1)
    assert done.reason == "gave up after 60 s with 1 of 1 to go"
    fake.slow = False
    (same,) = runner(archives).run([unit], 1)
    assert (same.reason, fake.asked) == (done.reason, [])
    (longer,) = runner(archives, cap_s=120.0).run([unit], 1)
    assert (longer.reason, fake.asked) == ("", ["valve/0"])


def test_runner_package_that_is_not_here_is_a_reason_unless_cached(archives: Path) -> None:
    """A peer without its package is left out with the reason; what was run elsewhere is still told."""
    fake, it = Fake(), runner(archives)
    absent = fake.contender(packages=("numpy", "no-such-distribution"))
    unit = run.Unit(absent, "skab", 0)
    (done,) = it.run([unit], 1)
    assert (done.reason, fake.asked) == ("no-such-distribution is not installed", [])
    trace.Cache(it.cache).write("skab", absent, 0, suites.load(archives, "skab")[0], scores(np.zeros(200)))
    (there,) = it.run([unit], 1)
    assert there.reason == ""
    assert it.traces(unit) is not None


def test_contenders_unknown_setting_of_an_ablation_is_an_error() -> None:
    """A misspelt switch must not pass for a measured ablation."""
    with pytest.raises(contenders.ConfigError, match="'no clock': DetectorConfig has no clokc"):
        contenders.contenders({"no clock": {"clokc": False}})


def test_contenders_every_ablation_of_the_script_is_a_config() -> None:
    """The script's own list can be run, and each of its lines differs from the default."""
    every = contenders.contenders(bench.ABLATIONS)
    base, *others = [c.settings for c in every if c.kind in {"gruard", "ablation"}]
    assert len(others) == len(bench.ABLATIONS)
    assert all(settings != base for settings in others)


def test_main_unknown_name_says_which_there_are(archives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--only with a name that nothing has is a mistake; kinds and names are told."""
    assert bench.main([str(archives), "--only", "gruard", "--only", "grurd"]) == 78
    told = capsys.readouterr().err
    assert "--only grurd" in told
    assert "river OneClassSVM" in told


def narrow(*cells: float | None) -> dict[str, Any]:
    return {"vus_zero": list(cells), "vus_scored": [0.5], "auc_zero": list(cells), "auc_scored": [0.5]}


def test_table_renders_means_spreads_and_differences() -> None:
    """Several seeds show their mean and half range; an ablation shows what it lost against gruard."""
    line = {"kind": "gruard", "derived": False, "settings": {}, "versions": {}, "measured": []} | {"note": ""}
    own = line | {"name": "gruard", "suites": {s: narrow(0.90, 0.94) for s in suites.RANKED}}
    cut = line | {"name": "no GRU", "kind": "ablation"}
    cut["suites"] = {s: narrow(0.80, 0.84) for s in suites.RANKED}
    lone = line | {"name": "peer", "kind": "peer", "note": "alone", "versions": {"numpy": "1"}}
    lone["suites"] = {"skab": narrow(0.5) | {"hit": [None], "budget_recall": [0.25]}}
    document = {
        "date": "2026-01-02",
        "code": "abc",
        "seeds": [0, 1],
        "versions": {"numpy": "2"},
        "machine": "a machine",
        "suites": {"skab": {"streams": 1, "rows": 1200, "fields": 8}},
        "lines": [lone, cut, own],
        "left_out": [{"name": "late", "reason": "not installed", "suites": ["skab", "nab"]}],
    }
    told = table.markdown(document)
    section = told.split("## VUS-PR")[1].split("##")[0].splitlines()
    assert section[4] == "| gruard |" + " .920 ±.020 (.500) |" * 5 + " - |"
    assert section[5] == "| no GRU |" + " .820 ±.020 (.500) |" * 5 + " -0.100 |"
    assert section[6] == "| peer | .500 (.500) | - | - | - | - | - |"
    assert "2026-01-02, code abc, seeds 0, 1" in told
    assert "- late, skab, nab: left out, not installed" in told
    assert "- peer: alone" in told
    assert "- peer: measured with numpy 1" in told
    assert "| peer | 0.25 | - |" in told


def test_write_results_come_as_json_and_as_told_from_it(tmp_path: Path) -> None:
    """Both files hold the same document, and nothing half-written stays behind."""
    document = {"date": "d", "code": "c", "seeds": [0], "versions": {}, "machine": "m"}
    document |= {"suites": {}, "lines": [], "left_out": []}
    table.write(tmp_path / "results", document)
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["quality.json", "quality.md"]
    kept = json.loads((tmp_path / "results" / "quality.json").read_text("utf-8"))
    assert table.markdown(kept) == (tmp_path / "results" / "quality.md").read_text("utf-8")


@pytest.mark.slow
def test_script_two_jobs_print_the_table_and_resume(archives: Path) -> None:
    """The script itself: two processes share the work, a second run finds all of it done."""
    options = ["--only", "random", "--only", "level", "--suite", "skab", "--suite", "msl", "--jobs", "2"]
    command = [sys.executable, str(SCRIPT), str(archives), *options, "--cache", str(archives.parent / "c")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, timeout=300, check=True) for _ in range(2)
    )
    assert "level, seed 0: 1 streams" in first.stdout
    assert "seed" not in second.stdout.split("# Detection quality")[0]
    tables = [re.sub(r"## Microseconds.*", "", run.stdout, flags=re.DOTALL) for run in (first, second)]
    assert tables[0].split("## In short")[1] == tables[1].split("## In short")[1]
    assert "a narrowed run: nothing written" in second.stdout
    assert not (ROOT / "bench" / "results" / "c").exists()


def readings(rows: int) -> NDArray[np.float32]:
    t = np.arange(rows)
    noise = np.random.default_rng(3).normal(0, 0.1, (rows, 2))
    return (np.stack([np.sin(t / 7), np.cos(t / 7)], axis=1) + noise).astype(np.float32)


def test_gruard_trace_is_what_a_user_of_the_library_gets() -> None:
    """The trace holds the public detector's own scores and alarms, and in-sample scores of its warm-up."""
    x = readings(220)
    x[180:200] += 3.0
    one = suites.Stream("s", np.arange(220) * 60.0, x, np.zeros(220, bool), 120, ())
    got = contenders.gruard_trace({"hidden": 16}, {}, one, 1, 60.0)
    detector = Detector(fields=2, warmup=120, config=DetectorConfig(seed=1, hidden=16))
    by_hand = [detector.update(t, row) for t, row in zip(one.time_s.tolist(), x, strict=True)]
    assert got.values.tolist() == [s.value for s in by_hand]
    assert got.alarms.tolist() == [s.alarm for s in by_hand]
    assert got.in_sample.shape == (120,)
    assert np.isfinite(got.in_sample).all()
    assert np.median(got.in_sample) < got.values[180:200].max()
    assert got.fit_seconds > 0.0


def test_patched_constant_is_put_back_and_a_misspelt_one_is_an_error() -> None:
    """An ablation changes the detector for its own run only."""
    before = gate.LUCK
    with contenders.patched({"training.candidate.LUCK": 1.0}):
        assert gate.LUCK == 1.0
    assert before == gate.LUCK
    with (
        pytest.raises(contenders.ConfigError, match="no LUK"),
        contenders.patched({"training.candidate.LUK": 1}),
    ):
        pass


def test_gruard_trace_that_takes_too_long_ends() -> None:
    """A detector stops when its time is up."""
    one = suites.Stream("s", np.arange(220.0), readings(220), np.zeros(220, bool), 120, ())
    with pytest.raises(trace.TooSlowError):
        contenders.gruard_trace({}, {}, one, 0, -1.0)


@pytest.fixture(params=["river HalfSpaceTrees", "river OneClassSVM", "pysad LODA", "deep-river LSTM-AE"])
def peer(request: pytest.FixtureRequest) -> Iterator[Any]:
    make, packages = contenders.PEERS[request.param]
    for package in packages:
        if not trace.version_of(package):
            pytest.skip(f"{package} is not installed: pip install -c constraints.txt -e '.[peers]'")
    return make


@pytest.mark.filterwarnings("ignore")
def test_peer_scores_are_causal_and_repeat(peer: Any) -> None:
    """A peer's scores do not depend on what comes later, and one seed gives the same scores again."""
    x = readings(300)
    x[250:260] += 5.0
    time_s, labels = np.arange(300.0), np.zeros(300, bool)
    whole = peers.trace(peer, suites.Stream("s", time_s, x, labels, 100, ()), 0, 60.0)
    part = suites.Stream("s", time_s[:270], x[:270], labels[:270], 100, ())
    assert whole.values[:270].tolist() == peers.trace(peer, part, 0, 60.0).values.tolist()
    assert whole.values[100:].std() > 0.0
