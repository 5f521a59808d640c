"""Bounded runs of the fuzzer in tests/fuzz; longer ones by GRUARD_FUZZ_TIMES and _SEED, or by hand.

Each target has promises of its own (tests/fuzz/targets.py); a broken one fails the run, which prints seed,
number and input. An input that failed once becomes a case below or in support_payloads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from fuzz.models import sealed, sound_tensors
from fuzz.targets import TARGETS
from support_engine import Bench, plant_rows, readings_of
from support_sources import OPTIONS

from gruard.daemon.core.checkpoints import open_state
from gruard.daemon.core.engine import BASELINE
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TESTS = Path(__file__).parent
SEED = os.environ.get("GRUARD_FUZZ_SEED", "20261126")
TIMES = int(os.environ.get("GRUARD_FUZZ_TIMES", "1"))

#: Blind inputs of a run, about two seconds each.
INPUTS = {
    "topic": 20_000,
    "config": 10_000,
    "tensors": 5000,
    "manifest": 5000,
    "adopt": 300,
    "database": 1000,
    "checkpoint": 20_000,
    "request": 50_000,
    "recording": 5000,
}


def fuzz(folder: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run the fuzzer in a process of its own; gives what it tells of each target."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments, "--seed", SEED, "--failures", str(folder)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=600 * TIMES,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


def test_two_hundred_thousand_payloads_end_as_readings_or_refusals(tmp_path: Path) -> None:
    """Random, damaged and grammatical payloads end counted, one end for each source, and memory stays."""
    inputs = 200_000 * TIMES
    (told,) = fuzz(tmp_path, "json", "--blind", "--inputs", str(inputs))
    assert sum(told["ends"].values()) == inputs * len(OPTIONS)
    assert told["ends"][""] > inputs / 100, "hardly an input was a reading: the fuzzer reaches nothing"
    assert len(told["ends"]) > 10
    assert told["grown"] < 0.05


#: Found, reported, not mended yet.


@pytest.mark.parametrize(
    "name",
    sorted(INPUTS),
)
def test_blind_inputs_keep_the_promises_of(name: str, tmp_path: Path) -> None:
    """Drawn inputs, repeatable by their seed, break no promise of the target."""
    (told,) = fuzz(tmp_path, name, "--blind", "--inputs", str(INPUTS[name] * TIMES))
    assert told["inputs"] == INPUTS[name] * TIMES


@pytest.mark.parametrize("name", ["json", "topic", "config", "tensors"])
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris, which has no wheel for this Python")
def test_guided_inputs_keep_the_promises_of(name: str, tmp_path: Path) -> None:
    """A fuzzer that sees which inputs reach new code breaks no promise of the target either."""
    list(fuzz(tmp_path, name, "--seconds", str(3 * TIMES)))
    seeds = len(list((tmp_path / f"corpus-{name}").glob("seed-*")))
    assert len(list((tmp_path / f"corpus-{name}").iterdir())) > seeds, "it found no input that reaches more"


# What was found once.


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("device.scale", None),
        ("device.scale", np.zeros((2, 2))),
        ("device.scale", np.full((2, 2), 1e300)),
        ("device.location", np.ones((2, 99))),
        ("device.median", np.ones((2, 3, 4, 1), np.float32)),
        ("device.quantile", np.ones((2, 12), np.float32)),
        ("device.level", np.zeros(2, np.float32)),
        ("device.level", np.ones((2, 1), np.float32)),
        ("device.skill", None),
        ("precision", np.ones((3, 2), np.float32)),
        ("var.weights", np.full((17, 4), 1e30, np.float32)),
    ],
)
def test_adopt_refuses_a_sealed_package_that_does_not_fit(name: str, tensor: NDArray[Any] | None) -> None:
    """Tensors that are absent, misshapen or beyond reason are a ModelError; the group stays as it was."""
    tensors = sound_tensors()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    bench = Bench()
    for device in ("pump-1", "pump-2"):
        bench.feed(readings_of(device, plant_rows(20, 0, 2)))
    (group,) = [group for group in bench.engine.groups.values() if group.devices]
    with pytest.raises(ModelError):
        bench.engine.adopt(group.name, sealed(tensors))
    assert group.model == BASELINE
    bench.engine.adopt(group.name, sealed(sound_tensors()))
    assert group.model != BASELINE


def test_adopt_refuses_a_network_for_another_number_of_fields() -> None:
    """A manifest that names the group's fields does not make a network of three fit two."""
    bench = Bench()
    bench.feed(readings_of("pump-1", plant_rows(20, 0, 2)))
    (group,) = [group for group in bench.engine.groups.values() if group.devices]
    with pytest.raises(ModelError):
        bench.engine.adopt(group.name, sealed(sound_tensors(3)))


def test_a_checkpoint_with_a_name_that_is_no_text_is_no_checkpoint() -> None:
    """Bytes where a text belongs are refused like any other damage."""
    known = b"\x81\xa4name\xa1\xff"
    with pytest.raises(msgspec.DecodeError):
        open_state(len(known).to_bytes(4, "big") + known)


def test_every_target_has_a_bounded_run() -> None:
    """A target that is added is also run."""
    assert INPUTS.keys() | {"json"} == TARGETS.keys()
