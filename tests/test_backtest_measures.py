"""From scores to alerts, and from alerts to what they are worth; how series are put together for a run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support_backtest import finished, scores, series
from support_engine import plant_rows

from gruard.daemon.backtest.alerts import raise_alerts, rows_open
from gruard.daemon.backtest.envelope import MOST_STRETCHES, cut, draw, envelope, stretches
from gruard.daemon.backtest.measures import total
from gruard.daemon.backtest.run import Batch, Options, plan, run, warmup_rows
from gruard.models import DetectorConfig
from gruard.models.history import History

OPTIONS = Options(DetectorConfig(hidden=8))


# --- alerts --------------------------------------------------------------------------------------------


def test_raise_alerts_follows_the_daemons_table() -> None:
    """An alert is open exactly while the device is in alarm, whatever its score does meanwhile."""
    one = series(300)
    own = scores(one, [(150, 160), (290, 299)])
    own.value[120:130] = 0.9  # high, and not in alarm
    own.value[155:158] = 0.1  # low, and still in alarm
    raised = raise_alerts(one, own, 60.0)
    assert [(a.first, a.last, a.ended) for a in raised] == [(150, 160, True), (290, 299, False)]
    assert raised[0].peak == pytest.approx(0.9)
    assert raised[0].shares == (("pressure", 0.75), ("flow", 0.25))
    assert raised[0].message.startswith("pump-1 behaves unusually: pressure is ")
    np.testing.assert_array_equal(rows_open(raised, 300), own.alarm)


def test_raise_alerts_severity_is_the_worst_it_came_to() -> None:
    """An alert that grows is told with its greatest severity; a learning device is never critical."""
    one = series(300)
    own = scores(one, [(150, 170)], warmup=100)
    own.value[150:155], own.value[155:171] = 0.62, 0.95
    (alert,) = raise_alerts(one, own, 60.0)
    assert alert.severity == "critical"
    own.ready[:] = False
    (alert,) = raise_alerts(one, own, 60.0)
    assert alert.severity == "warning"


# --- measures ------------------------------------------------------------------------------------------


def test_measure_counts_events_delays_and_false_episodes() -> None:
    """An alert in an event finds it; one elsewhere is false, per 10,000 readings and per week of time."""
    one = finished(series(400, labels=[(20, 40), (150, 170), (300, 320)]), [(153, 160), (240, 250)])
    outcome = one.measured.outcome
    assert (outcome.events, outcome.hit, outcome.false_episodes, outcome.delays) == (2, 1, 1, (3,))
    quiet = 300 - 2 * (21 + 30)
    assert outcome.quiet_rows == quiet
    assert outcome.false_per_10k == pytest.approx(1e4 / quiet)
    assert one.measured.per_week == pytest.approx(604_800 / (10 * quiet))
    early, hit, missed = one.measured.events
    assert (early.judged, hit.judged, missed.judged) == (False, True, True)
    assert (hit.alert, hit.delay, hit.delay_s) == (0, 3, 30.0)
    assert hit.shares[0] == ("pressure", 0.75)
    assert (missed.alert, missed.delay, missed.delay_s) == (None, None, None)


def test_measure_an_alert_that_outlasts_its_anomaly_is_not_false() -> None:
    """The long tail of a right alert calls nobody a second time; an alert that opens later does."""
    lasting = finished(series(400, labels=[(150, 155)]), [(152, 260)])
    assert lasting.measured.outcome.false_episodes == 0
    assert lasting.measured.outcome.hit == 1
    early = finished(series(400, labels=[(250, 255)]), [(140, 252)])
    assert early.measured.outcome.false_episodes == 1
    late = finished(series(400, labels=[(150, 155)]), [(190, 200)])
    assert late.measured.outcome.false_episodes == 1
    assert late.measured.outcome.hit == 0


def test_measure_without_labels_or_time_claims_nothing() -> None:
    """No label: no event, no ranking. No time: nothing per week."""
    one = finished(series(400, timed=False), [(153, 160)])
    assert one.measured.outcome.events == 0
    assert one.measured.rankings == {}
    assert one.measured.rates is None
    assert one.measured.per_week is None


def test_measure_ranks_beside_controls_and_floors_in_both_conventions() -> None:
    """Scores that are high in the anomaly alone rank perfectly; warm-up rows count as told."""
    one = series(400, labels=[(20, 40), (200, 260)])
    ranked = finished(one, [(200, 260)]).measured.rankings
    assert set(ranked) == {"gruard", "level", "linear", "ewma", "last_value", "random", "always"}
    # The first event lies in the warm-up: silent there, and in-sample no better.
    assert ranked["gruard"].auc_pr == pytest.approx(ranked["gruard"].auc_pr_in_sample, abs=0.2)
    both = finished(one, [(20, 40), (200, 260)]).measured.rankings["gruard"]
    assert both.auc_pr_in_sample == pytest.approx(1.0)
    assert both.auc_pr < 0.95
    assert both.vus_pr < both.vus_pr_in_sample
    assert ranked["random"].auc_pr < 0.5 < ranked["gruard"].auc_pr
    assert ranked["always"].auc_pr == pytest.approx(61 / 300 * 61 / 82 + 82 / 400 * 21 / 82, abs=0.02)


def test_total_pools_the_labelled_series() -> None:
    """Rates stand for the devices with labels, where there are any; rankings are means over those."""
    a = finished(series(400, labels=[(150, 170)]), [(152, 160)])
    b = finished(series(400, name="pump-2", labels=[(150, 170)]), [(300, 310)])
    c = finished(series(400, name="pump-3"), [(200, 210)])
    whole = total([(one.series, one.measured) for one in (a, b, c)])
    assert whole.labelled
    assert (whole.outcome.events, whole.outcome.hit, whole.outcome.false_episodes) == (2, 1, 1)
    assert whole.delays_s == (20.0,)
    middle = (a.measured.rankings["gruard"].vus_pr + b.measured.rankings["gruard"].vus_pr) / 2
    assert whole.rankings["gruard"].vus_pr == pytest.approx(middle)
    alone = total([(c.series, c.measured)])
    assert not alone.labelled
    assert alone.outcome.false_episodes == 1
    assert alone.rankings == {}


# --- what is drawn -------------------------------------------------------------------------------------


def test_envelope_keeps_every_spike_and_every_hole() -> None:
    """The lowest and highest of each stretch stand, and a stretch without a value is none."""
    values = np.zeros(1000)
    values[503] = 9.0
    values[100:200] = np.nan
    starts = cut(1000, 10)
    own = envelope(values, starts)
    assert starts.tolist() == list(range(0, 1000, 100))
    assert own.high[5] == 9.0
    assert own.low[5] == 0.0
    assert math.isnan(own.low[1])
    assert cut(7, 10).tolist() == list(range(7))


def test_stretches_keep_a_page_of_many_charts_small() -> None:
    """One device is drawn finely, hundreds coarsely."""
    assert stretches([series(400)]) == MOST_STRETCHES
    many = stretches([series(400)] * 400)
    assert 60 <= many < 120


def test_draw_takes_every_field() -> None:
    """Score, threshold, readings and what was expected, all in the same stretches."""
    one = series(400)
    drawing = draw(one, scores(one, [(200, 210)]), 50)
    assert len(drawing.starts) == 50
    assert len(drawing.fields) == len(drawing.expected) == 2
    assert drawing.score.high.max() == pytest.approx(0.9)
    assert drawing.fields[0].high.max() == pytest.approx(one.history.values[:, 0].max())


# --- the run -------------------------------------------------------------------------------------------


def test_warmup_rows_as_asked_as_the_file_says_or_a_share() -> None:
    """What the user says wins over the file, the file over the share; half the recording is the most."""
    long, short = series(10_000), series(300)
    assert warmup_rows(long, OPTIONS) == 2000
    assert warmup_rows(series(40_000), OPTIONS) == 5000
    assert warmup_rows(short, OPTIONS) == 150
    assert warmup_rows(long, Options(OPTIONS.config, warmup=0.5)) == 5000
    assert warmup_rows(long, Options(OPTIONS.config, warmup=123)) == 123
    assert warmup_rows(replace(long, warmup=700), OPTIONS) == 700


def test_plan_puts_devices_of_the_same_fields_together_when_asked() -> None:
    """Shared: one batch, with the shortest warm-up; too short recordings are told."""
    both = [series(1000), series(4000, name="pump-2"), series(50, name="pump-3")]
    apart = plan(both, OPTIONS)
    assert [len(batch.series) for batch in apart.batches] == [1, 1]
    assert apart.skipped == (("pump-3", "has 50 readings, and the warm-up alone takes 60"),)
    shared = plan(both, Options(OPTIONS.config, shared=True))
    (batch,) = shared.batches
    assert [one.name for one in batch.series] == ["pump-1", "pump-2"]
    assert batch.warmup == 400


def labelled(rows: int = 340) -> Batch:
    values = plant_rows(rows, fields=2)
    values[-60:, 1] += 12.0
    one = series(rows, labels=[(rows - 60, rows - 1)])
    history = History(one.history.time_s, values, np.ones(rows, bool))
    return Batch((replace(one, history=history),), 200)


def test_run_scores_judges_and_ranks_a_series() -> None:
    """The fault is found by an alert that names the field, and the ranking knows both conventions."""
    (one,) = run(labelled(), OPTIONS, 100, lambda _: None, lambda: False)
    assert one.left == 0
    assert one.measured.outcome.hit == 1
    assert one.raised[0].shares[0][0] == "pressure"
    assert one.measured.events[0].delay is not None
    assert one.measured.events[0].delay <= 3
    assert one.measured.rankings["gruard"].vus_pr > one.measured.rankings["random"].vus_pr + 0.3


def test_run_stopped_ends_the_series_where_it_stands() -> None:
    """What was scored is judged; a series that stands in its warm-up is left out."""
    rows = [0]

    def stop_after(limit: int) -> bool:
        rows[0] += 1
        return rows[0] > limit

    (one,) = run(labelled(), OPTIONS, 100, lambda _: None, lambda: stop_after(310))
    assert (one.series.rows, one.left) == (310, 30)
    assert one.series.labels is not None
    assert len(one.series.labels) == 310
    assert one.measured.outcome.hit == 1
    assert one.measured.rankings == {}
    rows[0] = 0
    assert list(run(labelled(), OPTIONS, 100, lambda _: None, lambda: stop_after(150))) == []
