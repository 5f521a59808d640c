"""The Prometheus page: every number that the daemon shows, on a registry of its own.

Nothing here knows where a number comes from. Each event and each gauge has one method, and every label
is bounded: reasons come from fixed lists, device and group names are cleaned and capped, so neither a
hostile publisher nor ten thousand devices can break or swell a scrape.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Literal

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from gruard.daemon.core.commands import TAGS
from gruard.daemon.core.probation import REASONS, Reason
from gruard.daemon.core.schedule import ROUND_REASONS
from gruard.daemon.edges.series import SPARE_REASONS, Labelled, ReasonCounter, clean_label
from gruard.daemon.records import ISSUE_REASONS, REJECT_REASONS, SHED_REASONS, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ReadingResult = Literal["scored", "duplicate", "rejected", "shed"]
Milestone = Literal["first_score", "ready"]
RetrainResult = Literal["promoted", "rejected", "failed", "timeout"]

#: The text format of 2014: every Prometheus and every agent reads it.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# One batched step takes 0.1 to 10 ms; a second means that the machine is in trouble.
SCORING_BUCKETS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# One fsync lies between 0.2 ms (a good disk) and seconds (a worn flash card).
COMMIT_BUCKETS_S = (5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# From arrival to commit: the group commit is 10 ms, a backlog after an outage may be a minute.
LATENCY_BUCKETS_S = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Ten readings of a device are seconds of one and days of another.
MILESTONE_BUCKETS_S = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 259_200.0, 604_800.0)
RETRAIN_BUCKETS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Metrics:
    """All metrics of one daemon on one registry (given or new); each method is one event or one gauge.

    `labelled_devices` bounds the devices (and likewise the groups) that get series of their own; the
    rest are counted by `gruard_devices_unlabelled` and `gruard_groups_unlabelled`. Methods may be called
    from any thread.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, version: str, labelled_devices: int = 500
    ) -> None:
        # The client's `_created` series double the page and say nothing that the process start does not.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = registry or CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = self._gauge("build_info", "Version of gruard and of Python; always 1.", "version", "python")
        build.labels(clean_label(version), platform.python_version()).set(1)
        self._make_reading_metrics()
        self._make_stage_metrics()
        self._make_device_metrics(labelled_devices)
        self._make_edge_metrics()
        self._make_model_metrics(labelled_devices)

    # -- readings ------------------------------------------------------------------------------------

    def messages_received(self, n: int = 1) -> None:
        """Count MQTT messages handed over by the broker edge."""
        self._messages.inc(n)

    def readings_received(self, n: int = 1) -> None:
        """Count readings that entered the pipeline: the left side of the accounting identity."""
        self._received.inc(n)

    def readings(self, result: ReadingResult, n: int = 1) -> None:
        """Count readings that left the pipeline: the right side of the accounting identity."""
        self._readings.add(result, n)

    def decode_error(self, reason: str, n: int = 1) -> None:
        """Count messages or readings refused for one of REJECT_REASONS (any other is "other")."""
        self._decode_errors.add(reason, n)

    def field_issue(self, reason: str, n: int = 1) -> None:
        """Count fields left out of a reading for one of ISSUE_REASONS (any other is "other")."""
        self._field_issues.add(reason, n)

    def shed(self, reason: str, n: int = 1) -> None:
        """Count readings dropped on purpose to keep a limit."""
        self._shed.add(reason, n)

    def gaps_seen(self, n: int) -> None:
        """Count readings that were never seen, by the gaps in their devices' sequence numbers."""
        self._gaps.inc(n)

    def reading_arrived(self, received_s: float) -> None:
        """Show when the newest reading arrived (Unix seconds UTC)."""
        self._last_reading.set(received_s)

    # -- stages --------------------------------------------------------------------------------------

    def observe_batch(self, size: int, seconds: float) -> None:
        """Record one batch: its number of readings and the seconds that scoring took."""
        self._batch_size.observe(size)
        self._scoring.observe(seconds)

    def observe_commit(self, seconds: float) -> None:
        """Record the seconds of one database commit."""
        self._commit.observe(seconds)

    def observe_end_to_end(self, seconds: float) -> None:
        """Record the seconds between a reading's arrival and its commit."""
        self._latency.observe(seconds)

    def set_inbox(self, readings: int) -> None:
        """Show how many readings wait to be scored."""
        self._inbox.set(readings)

    def set_outbox(self, pending: int) -> None:
        """Show how many alert events wait for the broker's acknowledgement."""
        self._outbox.set(pending)

    def set_journal_bytes(self, size: int) -> None:
        """Show the bytes that the database takes on disk."""
        self._journal.set(size)

    def set_held(self, held: bool) -> None:  # noqa: FBT001 -- the gauge is this one bit
        """Show whether commits wait for the disk."""
        self._held.set(held)

    def commit_failed(self) -> None:
        """Count a commit that the disk did not take; it is tried again."""
        self._failed_commits.inc()

    def damaged_rows(self, n: int) -> None:
        """Count stored rows whose checksum did not hold."""
        self._damaged.inc(n)

    # -- devices and alerts --------------------------------------------------------------------------

    def set_devices(self, *, warming: int, learning: int, ready: int) -> None:
        """Show how many devices are in each state."""
        for state, n in (("warming", warming), ("learning", learning), ("ready", ready)):
            self._devices.labels(state).set(n)

    def device_score(self, device: str, score: float) -> None:
        """Show a device's newest score (0 to 1), if the device is within the bound on series."""
        series = self._score_series.get(device)
        if series is None:
            label = self._device_labels.label(device)
            if label is None:
                return
            series = self._score_series[device] = self._scores.labels(label)
        series.set(score)

    def forget_device(self, device: str) -> None:
        """Drop the series of a removed device; its place goes to the next device that scores."""
        self._score_series.pop(device, None)
        label = self._device_labels.forget(device)
        if label is not None:
            self._scores.remove(label)

    def device_reached(self, what: Milestone, seconds: float) -> None:
        """Record how long after its first reading a device was first scored, or was ready."""
        (self._first_score if what == "first_score" else self._device_ready).observe(seconds)

    def states_reset(self, n: int = 1) -> None:
        """Count hidden states that were started afresh because they were no longer finite."""
        self._resets.inc(n)

    def alert_opened(self, severity: Severity) -> None:
        """Count one alert that opened."""
        self._alerts.add(severity, 1)

    def alerts_untold(self, n: int) -> None:
        """Count alert events that were kept and not published: a storm, or a full outbox."""
        self._untold.inc(n)

    def device_removed(self) -> None:
        """Count one device that made room for another."""
        self._removed.inc()

    def set_alerts_active(self, n: int) -> None:
        """Show how many alerts are open now."""
        self._alerts_active.set(n)

    def new_normal(self) -> None:
        """Count one alarm that lasted until it was taken for the device's normal."""
        self._new_normals.inc()

    def set_drifting(self, n: int) -> None:
        """Show how many devices have slowly left what they showed in their first days."""
        self._drifting.set(n)

    # -- broker and readiness ------------------------------------------------------------------------

    def set_mqtt_connected(self, connected: bool) -> None:  # noqa: FBT001 -- the gauge is this one bit
        """Show whether the broker connection stands."""
        self._connected.set(connected)

    def reconnected(self, n: int) -> None:
        """Count broker connections after the first."""
        self._reconnects.inc(n)

    def set_tls_insecure(self, insecure: bool) -> None:  # noqa: FBT001 -- the gauge is this one bit
        """Show whether the broker's certificate may be for another host."""
        self._insecure.set(insecure)

    def stale_acks(self, n: int) -> None:
        """Count acknowledgements that came too late for their connection."""
        self._stale_acks.inc(n)

    def thread_restarted(self) -> None:
        """Count one thread that died and was replaced."""
        self._restarts.inc()

    def clock_stepped(self) -> None:
        """Count one step of the wall clock."""
        self._clock_steps.inc()

    def set_ready(self, ready: bool) -> None:  # noqa: FBT001 -- the gauge is this one bit
        """Show whether /readyz would answer 200."""
        self._ready.set(ready)

    # -- models --------------------------------------------------------------------------------------

    def model_live(
        self, group: str, model: str, cell: str, *, skill: float | None, trained_s: float | None
    ) -> None:
        """Show the live model of a group in place of the one before.

        `skill` is 1 - error / the baseline's error and `trained_s` the training time (Unix seconds UTC);
        None, as for the baseline itself, shows neither.
        """
        label = self._group_labels.label(group)
        if label is None:
            return
        shown = (label, clean_label(model), clean_label(cell))
        if self._models_shown.get(group) != shown:
            self._drop_group_series(group, label)
            self._model_info.labels(*shown).set(1)
            self._models_shown[group] = shown
        for gauge, value in ((self._skill, skill), (self._trained, trained_s)):
            if value is None:
                gauge.remove(label)
            else:
                gauge.labels(label).set(value)

    def forget_group(self, group: str) -> None:
        """Drop the series of a group that has no devices any more."""
        label = self._group_labels.forget(group)
        if label is not None:
            self._drop_group_series(group, label)

    def show_feedback(self, group: str, counts: Mapping[str, int], precision: float | None) -> None:
        """Show what operators have said of a group's alerts and devices, and the share of right alerts.

        `counts`: words by verdict, all that are stored; None: no alert of the group has a verdict.
        """
        label = self._feedback_labels.label(group)
        if label is None:
            return
        for verdict, count in counts.items():
            series = (label, clean_label(verdict))
            grown = count - self._words_shown.get(series, 0)
            self._words.labels(*series).inc(max(grown, 0))
            self._words_shown[series] = count
        if precision is None:
            self._precision.remove(label)
        else:
            self._precision.labels(label).set(precision)

    def retrained(self, result: RetrainResult, seconds: float) -> None:
        """Record one training round: how it ended and how many seconds it took."""
        self._retrains.add(result, 1)
        self._retrain_duration.observe(seconds)

    def retrain_started(self, reason: str, n: int = 1) -> None:
        """Count training rounds that began, by why."""
        self._retrains_started.add(reason, n)

    def retrain_used(self, cpu_s: float, peak_bytes: int) -> None:
        """Record what an ended round used: seconds of processor time, and most resident memory."""
        self._retrain_cpu.inc(cpu_s)
        self._retrain_peak.set(peak_bytes)

    def set_retrain(self, done: float, *, paused: bool) -> None:
        """Show how far the running round is (share; 0: none runs), and whether it waits."""
        self._retrain_progress.set(done)
        self._retrain_paused.set(paused)

    def model_swapped(self) -> None:
        """Count one change of the weights that score."""
        self._swaps.inc()

    def rolled_back(self, reason: Reason) -> None:
        """Count one promoted model that was rolled back by itself."""
        self._rollbacks.add(reason, 1)

    def command(self, name: str, result: str) -> None:
        """Count one command of a person: what became of it, "done" or one of REFUSALS."""
        self._commands.labels(name if name in TAGS else "unknown", result).inc()

    def render(self) -> bytes:
        """Return the page in the text format that CONTENT_TYPE names."""
        return generate_latest(self._registry)

    # -- construction --------------------------------------------------------------------------------

    def _make_reading_metrics(self) -> None:
        self._messages = self._counter("messages_received_total", "MQTT messages received.")
        self._received = self._counter(
            "readings_received_total",
            "Readings received: the sum of gruard_readings_total and what is in the pipeline.",
        )
        self._readings = ReasonCounter(
            self._counter("readings_total", "Readings by what became of them.", "result"),
            ("scored", "duplicate", "rejected", "shed"),
        )
        self._decode_errors = ReasonCounter(
            self._counter("decode_errors_total", "Messages and readings refused, by reason.", "reason"),
            REJECT_REASONS,
        )
        self._field_issues = ReasonCounter(
            self._counter("field_issues_total", "Fields left out of readings, by reason.", "reason"),
            ISSUE_REASONS,
        )
        self._shed = ReasonCounter(
            self._counter("shed_total", "Readings dropped on purpose to keep a limit, by reason.", "reason"),
            SHED_REASONS,
            spare=SPARE_REASONS,
        )
        self._gaps = self._counter(
            "sequence_gaps_total", "Sequence numbers that were skipped: readings lost on the way, or refused."
        )
        self._last_reading = self._gauge(
            "last_reading_timestamp_seconds", "Arrival of the newest reading; 0 before the first."
        )

    def _make_stage_metrics(self) -> None:
        self._scoring = self._histogram(
            "scoring_duration_seconds", "Time to score one batch.", SCORING_BUCKETS_S
        )
        self._commit = self._histogram(
            "commit_duration_seconds", "Time of one database commit.", COMMIT_BUCKETS_S
        )
        self._latency = self._histogram(
            "end_to_end_latency_seconds", "Time from a reading's arrival to its commit.", LATENCY_BUCKETS_S
        )
        self._batch_size = self._histogram("batch_size", "Readings in one batch.", BATCH_BUCKETS)
        self._inbox = self._gauge("inbox_readings", "Readings that wait to be scored.")
        self._outbox = self._gauge("outbox_pending", "Alert events that the broker has not acknowledged.")
        self._journal = self._gauge("journal_bytes", "Size of the database on disk.")
        self._held = self._gauge("held", "1 while the disk takes nothing: what was scored waits for it.")
        self._failed_commits = self._counter("commit_failures_total", "Commits that the disk did not take.")
        self._damaged = self._counter("damaged_rows_total", "Stored rows that were damaged and left out.")

    def _make_device_metrics(self, labelled_devices: int) -> None:
        self._devices = self._gauge("devices", "Known devices by state.", "state")
        self.set_devices(warming=0, learning=0, ready=0)
        self._scores = self._gauge(
            "device_score_ratio", "Newest score of a device, 0 to 1; a bounded number of devices.", "device"
        )
        self._score_series: dict[str, Gauge] = {}
        self._device_labels = Labelled(
            labelled_devices,
            self._gauge("devices_unlabelled", "Devices that score but are beyond the bound on series."),
        )
        self._first_score = self._histogram(
            "device_first_score_seconds",
            "Time from a new device's first reading to its first score.",
            MILESTONE_BUCKETS_S,
        )
        self._device_ready = self._histogram(
            "device_ready_seconds",
            "Time from a new device's first reading to a model in charge of it.",
            MILESTONE_BUCKETS_S,
        )
        self._resets = self._counter("state_resets_total", "Hidden states started afresh: not finite.")
        self._alerts = ReasonCounter(
            self._counter("alerts_total", "Alerts opened, by severity.", "severity"),
            ("info", "warning", "critical"),
        )
        self._untold = self._counter(
            "alert_events_untold_total", "Alert events kept and not published: a storm, or a full outbox."
        )
        self._removed = self._counter("devices_removed_total", "Devices that made room for others.")
        self._alerts_active = self._gauge("alerts_active", "Alerts that are open now.")
        self._new_normals = self._counter(
            "new_normals_total", "Alarms that lasted until they were taken for a device's new normal."
        )
        self._drifting = self._gauge(
            "devices_drifting", "Devices that have slowly left what they showed in their first days."
        )

    def _make_edge_metrics(self) -> None:
        self._connected = self._gauge("mqtt_connected", "1 while the broker connection stands.")
        self._reconnects = self._counter("mqtt_reconnects_total", "Broker connections after the first.")
        self._insecure = self._gauge("mqtt_tls_insecure", "1 while the broker's host name is not checked.")
        self._stale_acks = self._counter(
            "mqtt_stale_acks_total", "Acknowledgements not sent because their connection had ended."
        )
        self._restarts = self._counter("thread_restarts_total", "Threads that died and were replaced.")
        self._clock_steps = self._counter(
            "clock_steps_total", "Times the wall clock was set by over a second."
        )
        self._ready = self._gauge("ready", "1 while /readyz answers 200.")

    def _make_model_metrics(self, labelled_groups: int) -> None:
        self._model_info = self._gauge(
            "model_info", "Live model of each group; always 1.", "group", "model", "cell"
        )
        self._skill = self._gauge(
            "model_skill_ratio",
            "1 - error of the live model / error of the baseline; above 0 helps.",
            "group",
        )
        self._trained = self._gauge(
            "model_trained_timestamp_seconds", "When the live model was trained.", "group"
        )
        self._models_shown: dict[str, tuple[str, str, str]] = {}
        self._group_labels = Labelled(
            labelled_groups,
            self._gauge("groups_unlabelled", "Groups with a model but beyond the bound on series."),
        )
        self._words = self._counter(
            "feedback_total", "Words of operators that are stored, by verdict.", "group", "verdict"
        )
        self._words_shown: dict[tuple[str, str], int] = {}
        self._precision = self._gauge(
            "alert_precision_ratio", "Share of right alerts among those that operators judged.", "group"
        )
        self._feedback_labels = Labelled(
            labelled_groups,
            self._gauge("feedback_groups_unlabelled", "Groups with feedback but beyond the bound on series."),
        )
        self._retrains = ReasonCounter(
            self._counter("retrain_total", "Training rounds by how they ended.", "result"),
            ("promoted", "rejected", "failed", "timeout"),
        )
        self._retrain_duration = self._histogram(
            "retrain_duration_seconds", "Time of one training round.", RETRAIN_BUCKETS_S
        )
        self._retrains_started = ReasonCounter(
            self._counter("retrain_started_total", "Training rounds begun, by why.", "reason"), ROUND_REASONS
        )
        self._retrain_cpu = self._counter("retrain_cpu_seconds_total", "Processor time of training rounds.")
        self._retrain_peak = self._gauge(
            "retrain_peak_memory_bytes", "Most resident memory of the newest training round."
        )
        self._retrain_progress = self._gauge(
            "retrain_progress_ratio", "Share of the running training round that is done; 0 while none runs."
        )
        self._retrain_paused = self._gauge("retrain_paused", "1 while the running training round waits.")
        self._swaps = self._counter("model_swaps_total", "Changes of the weights that score.")
        self._rollbacks = ReasonCounter(
            self._counter("model_rollbacks_total", "Promoted models taken back by themselves.", "reason"),
            REASONS,
        )
        self._commands = self._counter(
            "commands_total", "Commands by what became of them.", "command", "result"
        )

    def _drop_group_series(self, group: str, label: str) -> None:
        shown = self._models_shown.pop(group, None)
        if shown is not None:
            self._model_info.remove(*shown)
        self._skill.remove(label)
        self._trained.remove(label)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"gruard_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"gruard_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"gruard_{name}", text, registry=self._registry, buckets=buckets)
