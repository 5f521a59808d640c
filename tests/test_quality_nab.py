"""The NAB score: its fixed points and single alarms by hand, and agreement with the yardstick."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_yardstick import yardstick

from gruard.models.quality.nab import PROFILES, nab_scores
from gruard.models.quality.ranking import segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS, WINDOW = 100, (40, 49)  # probation ends at row 15
YARDSTICK_NAMES = {"standard": "standard", "low_fp": "reward_low_FP", "low_fn": "reward_low_FN"}


def alarms(*at: int, rows: int = ROWS) -> NDArray[np.float64]:
    """Scores that raise an alarm in the given rows at a threshold of 1."""
    scores = np.zeros(rows)
    scores[list(at)] = 1.0
    return scores


def scored(*at: int) -> dict[str, float]:
    """Scores of the profiles for alarms in these rows of the one series, all raised."""
    found = nab_scores([(alarms(*at), [WINDOW])], dict.fromkeys(PROFILES, 1.0))
    return {name: score.value for name, score in found.items()}


def sigmoid(x: float) -> float:
    return 2.0 / (1.0 + math.exp(5.0 * x)) - 1.0


def test_nab_score_of_silence_is_zero_and_of_perfection_a_hundred() -> None:
    """The two fixed points hold in every profile."""
    silent = nab_scores([(np.zeros(ROWS), [WINDOW])], dict.fromkeys(PROFILES, 1.0))
    assert [score.value for score in silent.values()] == [0.0] * 3
    assert list(scored(WINDOW[0]).values()) == pytest.approx([100.0] * 3)


def test_nab_score_of_a_late_alarm_is_less_by_the_curve() -> None:
    """On the last row of a window the reward is next to nothing; what remains is that it was not missed."""
    share = sigmoid(-0.1) / sigmoid(-1.0)
    late = scored(49)
    assert late["standard"] == pytest.approx(100 * (1 + share) / 2)
    assert late["low_fn"] == pytest.approx(100 * (2 + share) / 3)
    assert scored(41, 44, 49) == scored(41)  # the earliest counts, the others are free


def test_nab_score_charges_every_alarm_row_outside() -> None:
    """The full price far from a window and before the first one, little just behind one."""
    assert scored(20, 40)["standard"] == pytest.approx(100 * (2 - 0.11) / 2)
    assert scored(20, 21, 40)["low_fp"] == pytest.approx(100 * (2 - 0.44) / 2)
    assert scored(20, 40)["low_fn"] == pytest.approx(100 * (3 - 0.11) / 3)
    behind = 0.11 * sigmoid(1 / 9)
    assert scored(40, 50)["standard"] == pytest.approx(100 * (2 + behind) / 2)
    assert scored(40, 90)["standard"] == pytest.approx(100 * (2 - 0.11) / 2)  # beyond three widths


def test_nab_score_ignores_the_probation_at_the_start() -> None:
    """Alarms in the first 15 % of a series, at most 750 rows, cost nothing."""
    assert scored(*range(15), 40) == scored(40)
    assert scored(15, 40)["standard"] < scored(40)["standard"]
    long = alarms(749, 9000, rows=10_000)
    found = nab_scores([(long, [(9000, 9009)])], dict.fromkeys(PROFILES, 1.0))
    assert found["standard"].value == pytest.approx(100.0)


def test_nab_threshold_is_the_best_of_the_corpus() -> None:
    """The loud false alarm is worth paying for a window behind it, and silence beats false alarms alone."""
    good, loud = alarms(40), 3.0 * alarms(20)
    alone = nab_scores([(good + loud, [WINDOW])])["standard"]
    assert alone.threshold == 1.0
    assert alone.value == pytest.approx(100 * (2 - 0.11) / 2)
    hopeless = alarms(*range(15, 39)) + 0.5 * alarms(49)
    silent = nab_scores([(hopeless, [WINDOW])])["standard"]
    assert (silent.value, silent.threshold) == (0.0, np.inf)


def test_nab_series_without_a_window_only_costs() -> None:
    """A healthy series earns nothing, and every alarm row in it is charged in full."""
    healthy = alarms(50, 60)
    found = nab_scores([(alarms(40), [WINDOW]), (healthy, [])], dict.fromkeys(PROFILES, 1.0))
    assert found["standard"].value == pytest.approx(100 * (2 - 0.22) / 2)


def test_nab_corpus_without_windows_or_with_broken_scores_is_refused() -> None:
    """There is no score of nothing, and NaN has no rank."""
    with pytest.raises(ValueError, match="without anomaly windows"):
        nab_scores([(np.zeros(ROWS), [])])
    with pytest.raises(ValueError, match="not finite"):
        nab_scores([(np.full(ROWS, np.nan), [WINDOW])])


@pytest.mark.parametrize("seed", range(10))
def test_nab_scores_agree_with_the_yardstick(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Value and threshold of every profile are those of a scorer that reproduces the published board.

    Windows lie anywhere, in probation and at the very ends too, and scores tie.
    """
    theirs = yardstick(monkeypatch)
    random = np.random.default_rng(seed)
    corpus = []
    for _ in range(4):
        rows = int(random.integers(200, 1500))
        inside = np.zeros(rows, np.bool_)
        for first in random.integers(0, rows - 40, random.integers(4)):
            inside[first : first + random.integers(2, 40)] = True
        corpus.append((np.round(random.standard_normal(rows) + 2.0 * inside, 1), segments(inside)))
    names = [str(k) for k in range(len(corpus))]
    scores, windows = (dict(zip(names, part, strict=True)) for part in zip(*corpus, strict=True))
    expected = theirs.nab_score(scores, windows)
    for name, found in nab_scores(corpus).items():
        assert found.value == pytest.approx(expected[YARDSTICK_NAMES[name]], abs=1e-9)
        assert found.threshold == expected[YARDSTICK_NAMES[name] + "_thr"]
    at = dict.fromkeys(PROFILES, 2.05)
    given = theirs.nab_score(scores, windows, {YARDSTICK_NAMES[name]: t for name, t in at.items()})
    for name, found in nab_scores(corpus, at).items():
        assert found.value == pytest.approx(given[YARDSTICK_NAMES[name]], abs=1e-9)
