"""Groups: the devices of one source and field set, which share a model and are scored as one batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gruard.models.forecaster import Forecaster
from gruard.models.loan import loan_of
from gruard.models.neighbour import fits, narrowed
from gruard.models.weights import check_network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gruard.models.enrolment import Fitted
    from gruard.models.group import GroupScorer
    from gruard.models.weights import ModelPackage

#: What the model of a group is called before it has one.
BASELINE = "baseline"


@dataclass(slots=True)
class Group:
    """Devices scored together."""

    name: str
    source: str
    fields: tuple[str, ...]
    scorer: GroupScorer
    model: str = BASELINE
    trained_to_s: float = -math.inf  # newest event time that the model was trained on
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)  # device -> slot
    package: ModelPackage | None = None  # of its own model
    lender: str | None = None  # the neighbour's model that is in charge until it has one

    @property
    def in_charge(self) -> str:
        """The model that forecasts its devices that are ready: its own, or its neighbour's."""
        return self.lender or self.model

    def leave_model(self) -> None:
        """Put the baseline in charge."""
        self.scorer.adopt(None, "none")
        self.model, self.trained_to_s, self.fitted = BASELINE, -math.inf, {}
        self.package = self.lender = None

    def start_from(self, others: Iterable[Group]) -> bool:
        """Without a model of its own, start from that of the nearest neighbour; whether that is a change.

        It follows from the live models alone, so recovery finds the same.
        """
        near = [o for o in others if o.package and o.source == self.source and fits(self.fields, o.fields)]
        if self.model != BASELINE or not near:
            return False
        nearest = min(near, key=lambda other: (len(other.fields), other.name))
        if nearest.package is None or nearest.model == self.lender:
            return False
        whole = check_network(nearest.package), nearest.package.tensors
        config, tensors = narrowed(*whole, nearest.fields, self.fields)
        self.scorer.adopt(Forecaster(config, tensors), f"{nearest.model} of {nearest.name}", loan_of(tensors))
        self.lender = nearest.model
        return True

    def head_name(self, device: str, head: int) -> str:
        """What the head of a device is called: its own where nobody else was trained on it."""
        if not head:
            return "shared"
        taught = [name for name, one in self.fitted.items() if one.head == head]
        return "own" if taught == [device] else f"cluster {head}"


def group_name(source: str, fields: Sequence[str]) -> str:
    """Stable name of a group: the source and a short hash of the field names."""
    return f"{source}-{hashlib.sha256(chr(0).join(fields).encode()).hexdigest()[:6]}"
