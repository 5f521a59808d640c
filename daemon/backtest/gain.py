"""What settings are worth on held-back readings, and whether a gain can be told from luck.

    worth = mean VUS-PR - PRICE * max(false alerts - those the budget accepts, 0) per 10,000 quiet readings

Two settings are compared under the same conditions: each seed trains both and puts the same faults at the
same places for both. A difference may hang on the seed or on the place, and seeds and places are crossed, so
three bootstraps are put together as in Cameron, Gelbach & Miller 2011, "Robust inference with multiway
clustering": over seeds, over places, and over single cells, which the first two have both counted,

    reach^2 = (x_S * reach_S)^2 + (x_P * reach_P)^2 - reach_SP^2      of each end, from the mean

with x_n = t / z * sqrt(n / (n - 1)), because a bootstrap of few numbers is too narrow (Hesterberg 2015,
"What teachers should know about the bootstrap": the expanded percentile interval).

Shapes: S seeds, P places, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from gruard.models.quality.episodes import PER_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.backtest.held_back import Sheet

    Floats: TypeAlias = NDArray[np.float64]

#: VUS-PR that one false alert too many in 10,000 readings costs.
PRICE = 0.01
#: Draws of the bootstrap, its seed, and the ends of its interval.
DRAWS, SEED, ENDS = 4000, 0, (0.025, 0.975)
#: The 0.975 quantile of the normal distribution.
NORMAL_975 = 1.959964
#: Seeds and places with fewer of which there is no interval worth the name.
LEAST_SEEDS, LEAST_PLACES = 3, 4


class Worth(NamedTuple):
    """What settings came to."""

    worth: float
    vus_pr: float
    false_per_10k: float


@dataclass(frozen=True, slots=True)
class Gain:
    """How much more the new settings are worth than the present ones."""

    present: Worth
    new: Worth
    mean: float
    low: float  # of the 95 % interval
    high: float
    seeds: int
    places: int

    @property
    def certain(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0.0


def worth(sheets: Sequence[Sheet]) -> Worth:
    """What settings are worth over some seeds. NaN where there is no place with an anomaly."""
    return Worth(*(float(value[0]) for value in _worth(_table(sheets), np.ones((1, 1, 1)))))


def compare(present: Sequence[Sheet], new: Sequence[Sheet]) -> Gain | None:
    """The gain of `new` over `present`, one sheet a seed each; None: too few seeds or places to tell."""
    before, after = _table(present), _table(new)
    kept = np.isfinite(before[0]).all(axis=0) & np.isfinite(after[0]).all(axis=0)  # (P,)
    before, after = before[..., kept], after[..., kept]
    _, seeds, places = before.shape
    if seeds < LEAST_SEEDS or places < LEAST_PLACES:
        return None
    whole = np.ones((1, 1, 1))
    own, other = (Worth(*(float(v[0]) for v in _worth(t, whole))) for t in (before, after))
    mean = other.worth - own.worth
    reaches = [
        mean - np.quantile(_worth(after, drawn)[0] - _worth(before, drawn)[0], ENDS)  # below, above 0
        for drawn in _draws(seeds, places)
    ]
    over_seeds, over_places = _expansion(seeds) * reaches[0], _expansion(places) * reaches[1]
    both = np.square(over_seeds) + np.square(over_places) - np.square(reaches[2])
    reach = np.sqrt(np.maximum(both, np.maximum(np.square(over_seeds), np.square(over_places))))  # (2,)
    return Gain(own, other, mean, float(mean - reach[0]), float(mean + reach[1]), seeds, places)


def _draws(seeds: int, places: int) -> Iterator[Floats]:
    """How often each cell is drawn (B, S, P): whole seeds, whole places, single cells."""
    rng = np.random.default_rng(SEED)
    for count, shape in ((seeds, (seeds, 1)), (places, (1, places)), (seeds * places, (seeds, places))):
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=DRAWS)
        yield np.broadcast_to(drawn.reshape(DRAWS, *shape), (DRAWS, seeds, places)).astype(np.float64)


def _expansion(count: int) -> float:
    """How much wider than the bootstrap's an interval from n numbers must be: t / z * sqrt(n / (n - 1))."""
    z, v = NORMAL_975, count - 1
    # Cornish & Fisher's expansion of the quantile of Student's t about that of the normal distribution.
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return float(t / z * np.sqrt(count / v))


def _table(sheets: Sequence[Sheet]) -> Floats:
    """VUS-PR, false alerts, quiet rows, accepted alerts: (4, S, P)."""
    names = ("vus_pr", "false_alerts", "quiet_rows", "allowed")
    return np.array([[getattr(sheet, name) for sheet in sheets] for name in names])


def _worth(table: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Worth, VUS-PR and false alerts per 10,000: table (4, S, P), weights (B, S, P) -> (B,) each."""
    seen = np.isfinite(table[0])
    used = weights * seen  # (B, S, P)
    with np.errstate(invalid="ignore"):
        vus = (used * np.where(seen, table[0], 0.0)).sum(axis=(1, 2)) / used.sum(axis=(1, 2))
        false, quiet, allowed = ((weights * part).sum(axis=(1, 2)) for part in table[1:])
        rows = np.maximum(quiet, 1.0) / PER_ROWS
    return vus - PRICE * np.maximum(false - allowed, 0.0) / rows, vus, false / rows
