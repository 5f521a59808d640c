"""Promoted models on probation: what is counted of them, and what is kept over a restart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.events import Alert, Scored
from gruard.daemon.core.probation import HOPELESS, Probation, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gruard.daemon.core.engine import Engine
    from gruard.daemon.core.events import Event
    from gruard.daemon.edges.database import Database

#: The meta key of a group's probation begins with this.
KEY = "probation:"


class Promotions:
    """Counts readings and alerts of each group since its weights changed."""

    def __init__(self, engine: Engine, database: Database) -> None:
        self._engine, self._database = engine, database
        self._counts: dict[str, list[int]] = {}  # group -> readings, alerts opened
        self._watched: dict[str, Probation] = {}
        self._next: dict[str, int] = {}  # group -> readings at which it is looked at again

    def count(self, events: Iterable[Event]) -> None:
        """Take note of what was scored."""
        for event in events:
            if isinstance(event, Scored):
                self._of(event.group)[0] += 1
            elif isinstance(event, Alert) and event.state == "opened":
                self._of(event.group)[1] += 1
        if len(self._counts) > 2 * len(self._engine.groups) + 64:  # of groups that are no more
            self._counts = {name: n for name, n in self._counts.items() if name in self._engine.groups}

    def held_against(self, group: str, model: str) -> Probation:
        """What a model that takes charge now is held against: to be asked before it does."""
        readings, alerts = self._of(group)
        skill = self._engine.skill(self._engine.groups[group])
        usual = (alerts + 1) / (readings + 1)  # one that never alarmed yet may do so once
        return Probation(model, HOPELESS if math.isnan(skill) else skill, usual)

    def begin(self, group: str, probation: Probation | None) -> None:
        """Weights changed: count anew, and watch the model, None: do not."""
        self._counts[group] = [0, 0]
        self._next.pop(group, None)
        if probation is None:
            self._watched.pop(group, None)
        else:
            self._watched[group] = probation

    def keep(self, group: str, probation: Probation | None) -> None:
        """Write it into the open transaction."""
        self._database.set_meta(
            KEY + group, "" if probation is None else msgspec.json.encode(probation).decode()
        )

    def restore(self, group: str, model: str) -> None:
        """Watch a live model on, if it was watched; counts begin anew."""
        kept = self._database.meta(KEY + group)
        try:
            probation = msgspec.json.decode(kept, type=Probation) if kept else None
        except msgspec.DecodeError:
            return
        if probation is not None and probation.model == model:
            self._watched[group] = probation

    def worse(self) -> tuple[str, Reason, str] | None:
        """A group whose promoted model is clearly worse: its name, why, and a sentence on it."""
        for name, probation in list(self._watched.items()):
            group, (readings, alerts) = self._engine.groups.get(name), self._of(name)
            if group is None or not group.devices or readings < self._next.get(name, 1):
                continue
            self._next[name] = readings + len(
                group.devices
            )  # the skill of many devices takes a while to read
            devices, skill = len(group.devices), self._engine.skill(group)
            reason = probation.verdict(readings=readings, devices=devices, alerts=alerts, skill=skill)
            if reason is not None:
                told = f"by itself ({reason}): skill {skill:.3f} after {probation.skill:.3f}"
                return name, reason, f"{told}, {alerts} alerts in {readings} readings"
            if probation.is_over(readings=readings, devices=devices):
                del self._watched[name]
        return None

    def _of(self, group: str) -> list[int]:
        return self._counts.setdefault(group, [0, 0])
