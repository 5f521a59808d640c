"""Judge a demo run: what was injected against what was alerted. Pure; the rules are printed with the verdict.

Rules
    found        an alert of the faulty pump opened between the fault's start and its end
    false alarm  an alert opened on a pump that had no fault, or on a faulty pump before its fault began
    aftermath    an alert opened on a faulty pump after its repair: shown, neither found nor false
    burn raised  during the burn this machine's median score is at least 0.2 above the median of the minute
                 before, or its highest score is that and at least 0.1 above every score of that minute, or an
                 alert opened that is mostly about CPU and memory
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gruard.daemon.demo.fleet import Fault

RISE = 0.2  # how far a burn must lift the score above its median
CLEAR = 0.1  # how far a peak must lie above all that was there without a burn
#: Fields of this machine that the burn moves; an alert about others is not about the burn.
BURN_FIELDS = frozenset(
    {
        "cpu_percent",
        "cpu_busiest_percent",
        "load1",
        "processes",
        "context_switches_per_s",
        "interrupts_per_s",
        "memory_used_percent",
    }
)
REQUIRED_SHARE = 0.75  # of the faults, to call the run good
ALLOWED_FALSE_ALARMS = 1


@dataclass(frozen=True, slots=True)
class Alarm:
    """One opened alert, in event time."""

    device: str
    opened_s: float
    severity: str
    message: str
    model: str = ""  # what had scored it
    burn_share: float = 0.0  # contribution of BURN_FIELDS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one planned fault; `delay_s` is event time after its start, None when not found."""

    fault: Fault
    delay_s: float | None
    message: str = ""
    reached: bool = True  # False: the run ended before the fault began


@dataclass(frozen=True, slots=True)
class BurnVerdict:
    """Median and highest score of this machine before and during the burn; None where nothing was scored."""

    before: tuple[float, float] | None
    during: tuple[float, float] | None
    alert: str | None  # sentence of the alert that opened during the burn and is about it

    @property
    def raised(self) -> bool:
        """Whether the burn showed, by the rule in the module's docstring."""
        if self.alert is not None:
            return True
        if self.before is None or self.during is None:
            return False
        usual, highest = self.before
        lifted, peak = self.during
        return lifted >= usual + RISE or peak >= max(usual + RISE, highest + CLEAR)


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that is said at the end of a demo."""

    verdicts: tuple[Verdict, ...]
    false_alarms: tuple[Alarm, ...]
    aftermath: tuple[Alarm, ...]
    burn: BurnVerdict | None  # None: the demo ended before it
    sent: int
    counted: Mapping[str, int] | None  # readings the daemon has counted, by result; None: no answer
    start_s: float = 0.0  # event time at which the readings begin
    models: Mapping[str, int] = field(default_factory=dict)  # model in charge at the end -> devices
    problem: str | None = None  # why the run did not reach its end in good health

    @property
    def found(self) -> int:
        """Number of injected faults that were found."""
        return sum(verdict.delay_s is not None for verdict in self.verdicts)

    @property
    def good(self) -> bool:
        """Whether the run ended well: 3 of 4 faults found, at most one false alarm, nothing broke."""
        return (
            self.problem is None
            and self.found >= REQUIRED_SHARE * len(self.verdicts)
            and len(self.false_alarms) <= ALLOWED_FALSE_ALARMS
        )

    def lines(self) -> list[str]:
        """The summary as plain text, one fact per line, in stable wording."""
        lines = ["", "gruard demo summary", "==================="]
        lines += [_fault_line(verdict) for verdict in self.verdicts]
        lines.append(f"faults found: {self.found} of {len(self.verdicts)}")
        lines.append(f"false alarms: {len(self.false_alarms)} (alerts on healthy pumps or before the fault)")
        lines += [self._alarm_line(alarm) for alarm in self.false_alarms]
        if self.aftermath:
            lines.append(f"alerts after a repair: {len(self.aftermath)} (neither found nor false)")
            lines += [self._alarm_line(alarm) for alarm in self.aftermath]
        lines += _burn_lines(self.burn)
        lines.append(f"readings: {self.sent} sent, {_counted_text(self.counted)}")
        lines += [f"model {model}: in charge of {devices} devices" for model, devices in self.models.items()]
        if self.problem is not None:
            lines.append(f"problem: {self.problem}")
        lines.append(f"result: {'ok' if self.good else 'not ok'}")
        return lines

    def _alarm_line(self, alarm: Alarm) -> str:
        return (
            f"  second {alarm.opened_s - self.start_s:.0f}, by {alarm.model or 'no model'}: {alarm.message}"
        )


def alarm_from(alert: Mapping[str, Any]) -> Alarm | None:
    """The opening in a published alert; None for updates, endings and foreign payloads."""
    if alert.get("state") != "opened":
        return None
    try:
        opened = datetime.fromisoformat(str(alert.get("opened_at") or alert["time"]))
        model = alert.get("model")
        return Alarm(
            str(alert["device"]),
            opened.timestamp(),
            str(alert.get("severity", "")),
            str(alert.get("message", "")),
            str(model.get("id", "")) if isinstance(model, dict) else "",
            sum(
                float(part["share"])
                for part in alert.get("contributions", ())
                if part["field"] in BURN_FIELDS
            ),
        )
    except (KeyError, TypeError, ValueError):
        return None


def judge_faults(
    faults: Sequence[Fault],
    alarms: Iterable[Alarm],
    pumps: Iterable[str],
    start_s: float,
    played_s: float,
) -> tuple[list[Verdict], list[Alarm], list[Alarm]]:
    """Sort the pumps' alarms into verdicts, false alarms and aftermath.

    `start_s` is the event time of simulated second 0, and `played_s` how many simulated seconds were sent.
    """
    known = set(pumps)
    by_device = {fault.device: fault for fault in faults}
    hits: dict[str, Alarm] = {}
    false_alarms: list[Alarm] = []
    aftermath: list[Alarm] = []
    for alarm in sorted((a for a in alarms if a.device in known), key=lambda a: a.opened_s):
        fault = by_device.get(alarm.device)
        t = alarm.opened_s - start_s
        if fault is None or t < fault.start_s:
            false_alarms.append(alarm)
        elif t >= fault.end_s:
            aftermath.append(alarm)
        else:
            hits.setdefault(alarm.device, alarm)
    verdicts = []
    for fault in faults:
        hit = hits.get(fault.device)
        if hit is None:
            verdicts.append(Verdict(fault, None, reached=fault.start_s < played_s))
        else:
            verdicts.append(Verdict(fault, hit.opened_s - start_s - fault.start_s, hit.message))
    return verdicts, false_alarms, aftermath


def judge_burn(
    scores: Iterable[tuple[float, float]],
    alarms: Iterable[Alarm],
    device: str,
    burn_s: tuple[float, float],
    quiet_s: float,
) -> BurnVerdict:
    """Compare this machine's `(time, score)` pairs in the burn with those of the `quiet_s` before it."""
    begin, end = burn_s
    pairs = list(scores)
    about_burn = (
        alarm.message
        for alarm in alarms
        if alarm.device == device and begin <= alarm.opened_s <= end and alarm.burn_share >= 0.5
    )
    return BurnVerdict(
        before=_median_and_highest([score for time_s, score in pairs if begin - quiet_s <= time_s < begin]),
        during=_median_and_highest([score for time_s, score in pairs if begin <= time_s <= end]),
        alert=next(about_burn, None),
    )


def _median_and_highest(scores: list[float]) -> tuple[float, float] | None:
    return (median(scores), max(scores)) if scores else None


def _fault_line(verdict: Verdict) -> str:
    fault = verdict.fault
    head = f"fault: {fault.kind} on {fault.device}"
    if not verdict.reached:
        return f"{head}: NOT REACHED"
    if verdict.delay_s is None:
        return f"{head}: MISSED"
    return f"{head}: FOUND {verdict.delay_s:.0f} s after onset: {verdict.message}"


def _counted_text(counted: Mapping[str, int] | None) -> str:
    if counted is None:
        return "the daemon's count is not known"
    parts = ", ".join(f"{result} {count}" for result, count in counted.items() if count)
    return f"{sum(counted.values())} counted by the daemon ({parts or 'none'})"


def _burn_lines(burn: BurnVerdict | None) -> list[str]:
    if burn is None:
        return ["burn on this machine: not reached"]

    def told(scores: tuple[float, float] | None) -> str:
        return "not scored" if scores is None else f"median {scores[0]:.2f}, highest {scores[1]:.2f}"

    verdict = "RAISED" if burn.raised else "NOT RAISED"
    lines = [
        f"burn on this machine: score before: {told(burn.before)}; during: {told(burn.during)}: {verdict}",
        f"  (raised: median up by {RISE}, or highest up by {CLEAR}, or an alert mostly about CPU and memory)",
    ]
    if burn.alert is not None:
        lines.append(f"  alert: {burn.alert}")
    return lines
