"""Groups: the devices of one source and field set, which share a model and are scored as one batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gruard.models.enrolment import Fitted
    from gruard.models.group import GroupScorer

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

    def leave_model(self) -> None:
        """Put the baseline in charge."""
        self.scorer.adopt(None, "none")
        self.model, self.trained_to_s, self.fitted = BASELINE, -math.inf, {}

    def head_name(self, device: str, head: int) -> str:
        """What the head of a device is called: its own where nobody else was trained on it."""
        if not head:
            return "shared"
        taught = [name for name, one in self.fitted.items() if one.head == head]
        return "own" if taught == [device] else f"cluster {head}"


def group_name(source: str, fields: Sequence[str]) -> str:
    """Stable name of a group: the source and a short hash of the field names."""
    return f"{source}-{hashlib.sha256(chr(0).join(fields).encode()).hexdigest()[:6]}"
