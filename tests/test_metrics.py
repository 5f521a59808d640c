"""The metrics page: its exact text, its bounds and its behaviour under hostile names."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gruard.daemon.edges.metrics import CONTENT_TYPE, Metrics
from gruard.daemon.edges.series import MAX_LABEL_LENGTH, SPARE_REASONS, clean_label
from gruard.daemon.records import ISSUE_REASONS, REJECT_REASONS, SHED_REASONS

GOLDEN = Path(__file__).parent / "golden" / "metrics.prom"
HOSTILE_NAMES = [
    "",
    "\ud800",
    "a\nb 1",
    'quote" backslash\\',
    "\x1b[31mred",
    "\u202egnp.exe",
    "x" * 10_000,
    "\x00",
    "{device}",
    "ünï",
]


def make_metrics(labelled_devices: int = 500) -> Metrics:
    return Metrics(version="1.2.3", labelled_devices=labelled_devices)


def busy_metrics() -> Metrics:
    metrics = make_metrics(labelled_devices=2)
    metrics.messages_received(11)
    metrics.readings_received(12)
    metrics.readings("scored", 7)
    metrics.readings("duplicate")
    metrics.readings("rejected", 2)
    metrics.readings("shed", 2)
    metrics.decode_error("not_json", 2)
    metrics.field_issue("null", 3)
    metrics.shed("inbox_full", 2)
    metrics.gaps_seen(5)
    metrics.set_held(True)
    metrics.commit_failed()
    metrics.damaged_rows(2)
    metrics.alerts_untold(3)
    metrics.device_removed()
    metrics.set_tls_insecure(True)
    metrics.stale_acks(2)
    metrics.thread_restarted()
    metrics.clock_stepped()
    metrics.reading_arrived(1_700_000_000.5)
    metrics.observe_batch(7, 0.0004)
    metrics.observe_commit(0.003)
    metrics.observe_end_to_end(0.012)
    metrics.set_inbox(3)
    metrics.set_outbox(1)
    metrics.set_journal_bytes(4096)
    metrics.set_devices(warming=1, learning=2, ready=3)
    for device, score in (("press-1", 0.25), ("press-2", 0.5), ("press-3", 0.75)):
        metrics.device_score(device, score)
    metrics.device_reached("first_score", 20.0)
    metrics.device_reached("ready", 7200.0)
    metrics.states_reset()
    metrics.alert_opened("critical")
    metrics.set_alerts_active(1)
    metrics.set_mqtt_connected(True)
    metrics.reconnected(4)
    metrics.set_ready(True)
    metrics.model_live("plant/8", "m-1", "gru", skill=1.5, trained_s=1_700_000_000.0)
    metrics.retrained("promoted", 42.0)
    metrics.retrain_started("drift", 2)
    metrics.retrain_used(12.5, 300_000_000)
    metrics.set_retrain(0.25, paused=True)
    metrics.model_swapped()
    metrics.rolled_back("skill")
    metrics.command("rollback", "done")
    return metrics


def page(metrics: Metrics) -> str:
    return metrics.render().decode("utf-8")


def own_page(metrics: Metrics) -> str:
    """The page without what differs from machine to machine."""
    lines = [line for line in page(metrics).splitlines(keepends=True) if "gruard_" in line]
    return "".join(lines).replace(f'python="{platform.python_version()}"', 'python="3.x.y"')


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page(metrics))
        for sample in family.samples
        if sample.name == name
    }


def value(metrics: Metrics, name: str) -> float:
    return samples(metrics, name)[()]


def test_page_equals_the_golden_one() -> None:
    """Every name, help text, label and bucket is part of the contract and changes only on purpose."""
    assert own_page(busy_metrics()) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.prometheus
@pytest.mark.parametrize("make", [make_metrics, busy_metrics])
def test_page_passes_promtool(make: object) -> None:
    """Prometheus' own linter finds nothing to say, about names, units or help texts."""
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed (Debian: prometheus)")
    assert callable(make)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=make().render(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_page_has_process_memory_and_no_created_series() -> None:
    """Resident memory is on the page; the client's `_created` series are not."""
    text = page(busy_metrics())
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text
    assert "_created" not in text
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_known_reasons_start_at_zero() -> None:
    """A rate over a reason works from the first event, because its series is there before."""
    metrics = make_metrics()
    assert samples(metrics, "gruard_decode_errors_total") == {(reason,): 0 for reason in REJECT_REASONS}
    assert samples(metrics, "gruard_field_issues_total") == {(reason,): 0 for reason in ISSUE_REASONS}
    assert set(samples(metrics, "gruard_readings_total")) == {
        ("scored",),
        ("duplicate",),
        ("rejected",),
        ("shed",),
    }
    assert samples(metrics, "gruard_retrain_total") == {
        ("promoted",): 0,
        ("rejected",): 0,
        ("failed",): 0,
        ("timeout",): 0,
    }


def test_unknown_reasons_share_one_series() -> None:
    """Reasons outside the lists cannot swell the page, however many there are, and none is lost."""
    metrics = make_metrics()
    for n in range(1000):
        metrics.decode_error(f"made_up_{n}")
        metrics.shed(f"made_up_{n}")
    errors = samples(metrics, "gruard_decode_errors_total")
    shed = samples(metrics, "gruard_shed_total")
    assert len(errors) == len(REJECT_REASONS) + 1
    assert errors["other",] == 1000
    assert len(shed) == len(SHED_REASONS) + SPARE_REASONS + 1
    assert sum(shed.values()) == 1000


def test_device_series_are_bounded() -> None:
    """Ten thousand devices get no more series than the bound, and the others are counted once each."""
    metrics = make_metrics(labelled_devices=500)
    for _ in range(2):
        for n in range(10_000):
            metrics.device_score(f"device-{n}", 0.5)
    assert len(samples(metrics, "gruard_device_score_ratio")) == 500
    assert value(metrics, "gruard_devices_unlabelled") == 9_500


def test_forgotten_device_gives_its_place_to_another() -> None:
    """A removed device's series goes, and the next device that scores takes the place."""
    metrics = make_metrics(labelled_devices=1)
    metrics.device_score("old", 0.1)
    metrics.device_score("new", 0.2)
    metrics.forget_device("old")
    metrics.forget_device("never seen")
    metrics.device_score("new", 0.3)
    assert samples(metrics, "gruard_device_score_ratio") == {("new",): 0.3}
    assert value(metrics, "gruard_devices_unlabelled") == 0


def test_forgotten_unlabelled_device_is_counted_no_more() -> None:
    """The count of devices without series falls when such a device is removed."""
    metrics = make_metrics(labelled_devices=0)
    metrics.device_score("a", 0.1)
    metrics.device_score("b", 0.1)
    metrics.forget_device("a")
    assert value(metrics, "gruard_devices_unlabelled") == 1


def test_hostile_names_leave_the_page_readable() -> None:
    """Surrogates, newlines, quotes and endless names all become one label each on a page that parses."""
    metrics = make_metrics()
    for n, name in enumerate(HOSTILE_NAMES):
        metrics.device_score(name, n / 100)
        metrics.model_live(name, name, name, skill=1.0, trained_s=0.0)
    scores = samples(metrics, "gruard_device_score_ratio")
    assert sorted(scores.values()) == [n / 100 for n in range(len(HOSTILE_NAMES))]
    assert len(samples(metrics, "gruard_model_info")) == len(HOSTILE_NAMES)
    assert all(0 < len(label) <= MAX_LABEL_LENGTH and label.isprintable() for (label,) in scores)


def test_hostile_name_can_be_forgotten() -> None:
    """A device is removed by the name it came with, not by the label it was shown under."""
    metrics = make_metrics()
    for name in HOSTILE_NAMES:
        metrics.device_score(name, 1.0)
        metrics.forget_device(name)
    assert samples(metrics, "gruard_device_score_ratio") == {}


def test_clean_label_keeps_good_names_and_parts_bad_ones() -> None:
    """A printable name is its own label; two names that differ in control characters stay two."""
    assert clean_label("press-1 ünï") == "press-1 ünï"
    assert clean_label("a\x00") != clean_label("a\x01")
    assert clean_label("x" * 500) != clean_label("x" * 501)


def test_new_model_replaces_the_old_one() -> None:
    """Each group shows exactly one model, and a model without skill or training time shows neither."""
    metrics = make_metrics()
    metrics.model_live("g", "m-1", "gru", skill=1.5, trained_s=100.0)
    metrics.model_live("h", "m-9", "lstm", skill=1.1, trained_s=50.0)
    metrics.model_live("g", "baseline", "none", skill=None, trained_s=None)
    assert set(samples(metrics, "gruard_model_info")) == {("none", "g", "baseline"), ("lstm", "h", "m-9")}
    assert samples(metrics, "gruard_model_skill_ratio") == {("h",): 1.1}
    assert samples(metrics, "gruard_model_trained_timestamp_seconds") == {("h",): 50.0}


def test_forgotten_group_leaves_no_series() -> None:
    """A group that is gone is gone from all three of its metrics."""
    metrics = make_metrics()
    metrics.model_live("g", "m-1", "gru", skill=1.5, trained_s=100.0)
    metrics.forget_group("g")
    metrics.forget_group("never seen")
    for name in ("model_info", "model_skill_ratio", "model_trained_timestamp_seconds"):
        assert samples(metrics, f"gruard_{name}") == {}


def test_group_series_are_bounded() -> None:
    """Groups share the bound on series: a publisher cannot make them by inventing sets of fields."""
    metrics = make_metrics(labelled_devices=3)
    for n in range(50):
        metrics.model_live(f"g-{n}", "m", "gru", skill=1.0, trained_s=0.0)
    assert len(samples(metrics, "gruard_model_info")) == 3
    assert value(metrics, "gruard_groups_unlabelled") == 47


def test_histograms_count_what_they_observe() -> None:
    """Batch size, durations and latency each land in their own histogram, in base units."""
    metrics = busy_metrics()
    for name, total in (
        ("batch_size", 7),
        ("scoring_duration_seconds", 0.0004),
        ("commit_duration_seconds", 0.003),
        ("end_to_end_latency_seconds", 0.012),
        ("retrain_duration_seconds", 42),
    ):
        assert value(metrics, f"gruard_{name}_count") == 1
        assert value(metrics, f"gruard_{name}_sum") == total


def test_page_renders_while_devices_come_and_go() -> None:
    """The HTTP thread may render while the pipeline changes the very series that are shown."""
    metrics = make_metrics(labelled_devices=50)
    stop = threading.Event()

    def churn() -> None:
        n = 0
        while not stop.is_set():
            metrics.device_score(f"device-{n % 200}", 0.5)
            metrics.forget_device(f"device-{(n + 100) % 200}")
            n += 1

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(50):
            assert len(samples(metrics, "gruard_device_score_ratio")) <= 50
    finally:
        stop.set()
        worker.join()
