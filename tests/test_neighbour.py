"""A group without a model starts from that of a neighbour with the same fields and more."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import Bench, plant_rows, readings_of
from support_models import random_tensors, sealed_model

from gruard.daemon.core.engine import BASELINE, group_name
from gruard.daemon.core.events import Scored
from gruard.models import memory
from gruard.models.arena import fresh
from gruard.models.enrolment import replay
from gruard.models.forecaster import Forecaster
from gruard.models.history import Aligned
from gruard.models.neighbour import fits, narrowed

FIELDS = ("f0", "f1", "f2")
GROUP, PART = group_name("plant", FIELDS), group_name("plant", FIELDS[:2])


def test_narrowed_model_says_what_the_whole_one_says_of_the_fields_that_are_left() -> None:
    """Forecasts, corrections and clock; the field that is left out was never shown to the whole one."""
    config, tensors = random_tensors(4, clock_columns=2)
    tensors |= {"head.weights": -tensors["var.weights"][None], "head.gate": 0.5 * tensors["gate"][None]}
    names, kept = ("a", "b", "c", "d"), ("a", "c", "d")
    part = Forecaster(*narrowed(config, tensors, names, kept))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 2, 4)).astype(np.float32)
    z[:, :, 1] = 0.0
    mask = np.ones(z.shape, bool)
    mask[:, :, 1] = False
    here = np.array([0, 2, 3])
    lines = []
    for forecaster, chosen in ((Forecaster(config, tensors), np.arange(4)), (part, here)):
        rows = fresh(memory.columns(forecaster), 2)
        rows["head"][:] = [0, 1]
        time_s = 600.0 * np.arange(60.0)[:, None] * np.ones(2)
        readings = Aligned(
            np.ones((60, 2), bool), mask[..., chosen], z[..., chosen], np.ones((60, 2)), time_s
        )
        lines.append(replay(rows, readings, forecaster))
    np.testing.assert_allclose(lines[0][..., here], lines[1], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "neighbour", "may"),
    [
        ("ab", "abc", True),
        ("abc", "abc", False),
        ("abd", "abc", False),
        ("a", "ab", False),
        ("ab", "abcde", False),
    ],
)
def test_fits_a_part_of_the_fields_that_is_not_too_small(fields: str, neighbour: str, *, may: bool) -> None:
    """The same fields are the same group; one field has other lags; of a small part little is known."""
    assert fits(tuple(fields), tuple(neighbour)) is may


def taught() -> Bench:
    """An engine in which devices with three fields have a model."""
    bench = Bench()
    for n in range(2):
        bench.feed(readings_of(f"d{n}", plant_rows(300, n)))
    return bench


def adopt(bench: Bench) -> str:
    package = sealed_model(GROUP, {f"d{n}": bench.history(f"d{n}", FIELDS, 300) for n in range(2)})
    bench.engine.enrol(
        {e.device: bench.history(e.device, e.fields, e.limit) for e in bench.engine.adopt(GROUP, package)}
    )
    return package.manifest.id


def test_new_group_starts_from_the_neighbours_model() -> None:
    """A device that lacks a field is ready on a loan, while its own group waits for its first round."""
    bench = taught()
    model = adopt(bench)
    bench.feed(readings_of("part", plant_rows(60, 9)[:, :2]))
    group = bench.engine.groups[PART]
    assert (group.model, group.in_charge) == (BASELINE, model)
    assert bench.engine.devices["part"].phase == "ready"
    assert bench.engine.devices["part"].borrowed > 0.5


def test_group_that_waits_takes_the_neighbours_model_when_there_is_one() -> None:
    """Its devices become due with the neighbour's, and its own model ends the loan."""
    bench = taught()
    bench.feed(readings_of("part", plant_rows(300, 9)[:, :2]))
    assert bench.engine.groups[PART].in_charge == BASELINE
    model = adopt(bench)
    assert bench.engine.groups[PART].in_charge == model
    bench.feed(readings_of("part", plant_rows(310, 9)[300:, :2], 1300.0))
    assert bench.engine.devices["part"].phase == "ready"
    own = sealed_model(PART, {"part": bench.history("part", FIELDS[:2], 300)}, FIELDS[:2])
    bench.engine.adopt(PART, own)
    assert (bench.engine.groups[PART].in_charge, bench.engine.groups[PART].lender) == (own.manifest.id, None)


def test_neighbours_model_lasts_through_a_checkpoint() -> None:
    """Restored after the live models, the device goes on as the one that was never stopped."""
    whole, again = taught(), taught()
    adopt(whole)
    adopt(again)
    whole.feed(readings_of("part", plant_rows(70, 9)[:, :2]))
    due = again.engine.restore(list(whole.engine.checkpoint(0)))
    assert "part" not in {event.device for event in due}
    again.rows["part"] = list(whole.rows["part"])
    more = readings_of("part", plant_rows(90, 9)[70:, :2], 1070.0)
    told = [[e.score for e in each.feed(more) if isinstance(e, Scored)] for each in (whole, again)]
    assert told[0] == told[1]
