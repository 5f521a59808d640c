"""Is a promoted model clearly worse than the one before it? Pure policy: counts in, a verdict out.

The running skill of a group starts at 0 with each change of weights and is as good as settled after some
3,000 readings of a device. So a model that was better before can be held against it only then; one that is
far worse is known much earlier. Readings in alarm count for nothing: nobody forecasts a fault.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

#: Readings of a device, on average, before the first look at the skill and at the last one.
FIRST_LOOK, LAST_LOOK = 200, 3000
#: What counts as clearly worse, once skill has settled and before: it is 1 - error / error of the last value.
CLEARLY, EARLY = 0.1, 0.5
#: What a group's first model is held against: below it no device would be enrolled on the model, and above it
#: forecast skill does not rank detectors.
HOPELESS: Final = -1.5
#: So many alerts at least, from so many devices as it takes to be no matter of one fault, and so many times
#: what was usual, are a burst.
FEWEST_ALERTS, SHARE_OF_DEVICES, TIMES_USUAL = 10, 0.1, 5.0

Reason = Literal["skill", "alerts"]
REASONS: Final[tuple[Reason, ...]] = ("skill", "alerts")


class Probation(msgspec.Struct, frozen=True):
    """What a promoted model is held against. Kept with the switch, so that a restart begins it anew."""

    model: str
    skill: float  # running skill of the model before it; HOPELESS for the baseline
    alerts: float  # alerts opened per reading before it

    def verdict(self, *, readings: int, devices: int, alerts: int, skill: float) -> Reason | None:
        """Why the model must go, if it must.

        `readings` and `alerts` since it took charge of `devices`; `skill` is its running skill, NaN while no
        device is ready.
        """
        fewest = max(FEWEST_ALERTS, SHARE_OF_DEVICES * devices)
        if alerts >= fewest and alerts > TIMES_USUAL * self.alerts * readings:
            return "alerts"
        if math.isnan(skill) or readings < FIRST_LOOK * devices:
            return None
        if skill < min(self.skill, 0.0) - EARLY:
            return "skill"
        if self.is_over(readings=readings, devices=devices) and skill < self.skill - CLEARLY:
            return "skill"
        return None

    @staticmethod
    def is_over(*, readings: int, devices: int) -> bool:
        """Whether it was watched for long enough."""
        return readings >= LAST_LOOK * devices
