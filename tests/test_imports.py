"""The direction of imports: the checkout obeys the table, and each rule of the table can fail."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support_imports import EDGE_PAIRS, bare_imports, imports, layer_of, read_package, violations

ROOT = Path(__file__).resolve().parent.parent

BROKEN = {
    "a model imports the daemon": (
        "gruard.models.cells",
        "from gruard.daemon.records import Reading",
        "models may not import gruard.daemon.records",
    ),
    "a model imports the training side on load": (
        "gruard.models.detector",
        "from gruard.models.training.fit import fit",
        "models may not import gruard.models.training.fit",
    ),
    "a model imports the training side through the package": (
        "gruard.models.detector",
        "from gruard.models import training",
        "models may not import gruard.models.training",
    ),
    "a model imports the training side relatively": (
        "gruard.models.detector",
        "from .training import fit",
        "models may not import gruard.models.training",
    ),
    "a model imports torch inside a function": (
        "gruard.models.detector",
        "def f():\n    import torch",
        "models may not import the package torch",
    ),
    "the training side imports the daemon": (
        "gruard.models.training.fit",
        "import gruard.daemon.records",
        "training may not import gruard.daemon.records",
    ),
    "records import the core": (
        "gruard.daemon.records",
        "from gruard.daemon.core import engine",
        "records may not import gruard.daemon.core.engine",
    ),
    "records import msgspec": (
        "gruard.daemon.records",
        "import msgspec",
        "records may not import the package msgspec",
    ),
    "the core imports an edge for types": (
        "gruard.daemon.core.engine",
        "if TYPE_CHECKING:\n    from gruard.daemon.edges.database import Database",
        "core may not import gruard.daemon.edges.database",
    ),
    "the core imports the training side inside a function": (
        "gruard.daemon.core.engine",
        "def f():\n    from gruard.models.training.fit import fit",
        "core may not import gruard.models.training.fit",
    ),
    "a decoder imports an unlisted package": (
        "gruard.daemon.decoders.cbor",
        "import cbor2",
        "core may not import the package cbor2",
    ),
    "the core touches the outside": (
        "gruard.daemon.core.engine",
        "import threading",
        "imports threading, but core is pure",
    ),
    "a model opens a file": (
        "gruard.models.cells",
        "def f(p):\n    return open(p)",
        "opens a file, but its layer is pure",
    ),
    "an edge imports another edge": (
        "gruard.daemon.edges.http",
        "from gruard.daemon.edges.metrics import Metrics",
        "edges may not import gruard.daemon.edges.metrics",
    ),
    "a pair of edges is turned round": (
        "gruard.daemon.edges.reconnect",
        "from gruard.daemon.edges.broker import Broker",
        "edges may not import gruard.daemon.edges.broker",
    ),
    "an edge imports the settings": (
        "gruard.daemon.edges.http",
        "from gruard.daemon.settings import load",
        "edges may not import gruard.daemon.settings",
    ),
    "another edge imports paho": (
        "gruard.daemon.edges.http",
        "import paho.mqtt.client as mqtt",
        "edges may not import the package paho",
    ),
    "the pipeline reads a clock": (
        "gruard.daemon.pipeline",
        "import time\ntime.time()",
        "reads the clock time.time",
    ),
    "another edge imports prometheus_client": (
        "gruard.daemon.edges.http",
        "from prometheus_client import Counter",
        "edges may not import the package prometheus_client",
    ),
    "the service imports pydantic": (
        "gruard.daemon.service",
        "import pydantic",
        "service may not import the package pydantic",
    ),
    "the service imports torch inside a function": (
        "gruard.daemon.service",
        "def f():\n    import torch",
        "service may not import the package torch",
    ),
    "the service imports the command line": (
        "gruard.daemon.service",
        "from gruard.daemon.cli import main",
        "service may not import gruard.daemon.cli",
    ),
    "the service imports the trainer's process": (
        "gruard.daemon.service",
        "def f():\n    from gruard.daemon.training_round import main",
        "service may not import gruard.daemon.training_round",
    ),
    "the command line imports the training side on load": (
        "gruard.daemon.cli",
        "from gruard.models.training.fit import fit",
        "cli may not import gruard.models.training.fit",
    ),
    "import_module names a forbidden module": (
        "gruard.daemon.core.engine",
        "import importlib\nimportlib.import_module('gruard.daemon.edges.database')",
        "core may not import gruard.daemon.edges.database",
    ),
    "import_module computes its name": (
        "gruard.daemon.core.engine",
        "from importlib import import_module\nimport_module(name)",
        "core may not import the package <computed>",
    ),
    "an edge calls a clock": (
        "gruard.daemon.edges.http",
        "import time\nnow = time.monotonic()",
        "reads the clock time.monotonic",
    ),
    "a clock is a default": (
        "gruard.daemon.edges.http",
        "import time as t\ndef f(clock=t.time): ...",
        "reads the clock time.time",
    ),
    "a clock is imported by name": (
        "gruard.models.group",
        "from time import perf_counter as now\nnow()",
        "reads the clock time.perf_counter",
    ),
    "the date is a clock": (
        "gruard.daemon.core.engine",
        "from datetime import UTC, datetime\ndatetime.now(UTC)",
        "reads the clock datetime.datetime.now",
    ),
    "the date is a clock by its full name": (
        "gruard.models.training.fit",
        "import datetime\ndatetime.date.today()",
        "reads the clock datetime.date.today",
    ),
    "the bare daemon is imported": (
        "gruard.daemon.cli",
        "from daemon.records import Reading",
        "imports the bare name daemon",
    ),
    "the bare models are imported": (
        "gruard.daemon.cli",
        "import models",
        "imports the bare name models",
    ),
    "a wildcard is imported": (
        "gruard.daemon.core.engine",
        "from gruard.daemon.records import *",
        "imports everything from gruard.daemon.records",
    ),
    "a module has no place": ("gruard.daemon.stray", "", "has no place in the table"),
}

ALLOWED = {
    "Detector trains inline": (
        "gruard.models.detector",
        "class Detector:\n    def f(self):\n        from gruard.models.training.fit import fit",
    ),
    "a model names a training type": (
        "gruard.models.detector",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gruard.models.training.fit import Fit",
    ),
    "the training side imports torch": (
        "gruard.models.training.fit",
        "import torch\nfrom torch import nn\nnn.Linear(1, 1).eval()",
    ),
    "a model imports a model relatively": ("gruard.models.detector", "from . import cells"),
    "the core imports inner layers": (
        "gruard.daemon.core.engine",
        (
            "import re\nimport msgspec\nimport numpy as np\nfrom gruard.daemon import records\n"
            "from gruard.models import cells\nfrom gruard.daemon.decoders import DECODERS\nre.compile('x')"
        ),
    ),
    "dates without a clock": (
        "gruard.daemon.core.engine",
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0.0, UTC)",
    ),
    "a listed pair of edges": (
        "gruard.daemon.edges.database",
        "import sqlite3\nfrom gruard.daemon.edges.schema import migrate",
    ),
    "model packages are files": (
        "gruard.models.weights",
        "import os\nimport msgspec\nfrom safetensors.numpy import load\nopen('x')",
    ),
    "the service wires": (
        "gruard.daemon.service",
        (
            "import time\nfrom gruard.daemon.edges import broker\nfrom gruard.daemon.settings import load\n"
            "clock = time.monotonic"
        ),
    ),
}

#: Modules that the snippets mention, so that submodules can be told from other names.
KNOWN = (
    "gruard.daemon gruard.daemon.core gruard.daemon.core.engine gruard.daemon.decoders gruard.daemon.edges "
    "gruard.daemon.edges.broker gruard.daemon.records gruard.models gruard.models.cells "
    "gruard.daemon.training_round gruard.models.training gruard.models.training.fit"
)


def _violations_of(module: str, text: str) -> list[str]:
    return violations({**dict.fromkeys(KNOWN.split(), ""), module: text})


def _modules_loaded_by(*arguments: str) -> set[str]:
    """Names that `python -X importtime` lists while it runs `arguments`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    rows: list[str] = []
    rest: list[str] = []
    for line in done.stderr.splitlines():
        (rows if line.startswith("import time:") else rest).append(line)
    assert done.returncode == 0, "\n".join(rest)
    return {row.rpartition("|")[2].strip() for row in rows}


def test_imports_of_the_checkout_obey_the_table() -> None:
    """Every module of daemon/ and models/ imports and does only what its layer may."""
    sources = read_package(ROOT)
    assert "gruard.daemon.records" in sources
    assert violations(sources) == []


def test_imports_of_tests_and_benchmarks_never_use_the_bare_names() -> None:
    """No test and no benchmark imports `daemon` or `models`, which would be a second copy."""
    files = [*(ROOT / "tests").glob("*.py"), *(ROOT / "bench").glob("*.py")]
    found = {path.name: lines for path in files if (lines := bare_imports(path.read_text("utf-8")))}
    assert files
    assert found == {}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_refuses_what_breaks_it(case: str) -> None:
    """A source that breaks one rule is reported once, with its module and line."""
    module, text, expected = BROKEN[case]
    found = _violations_of(module, text)
    assert len(found) == 1, found
    assert found[0].startswith(f"{module}:")
    assert expected in found[0]


@pytest.mark.parametrize("case", ALLOWED)
def test_rules_accept_what_they_mean_to_allow(case: str) -> None:
    """A source within the table is not reported."""
    module, text = ALLOWED[case]
    assert _violations_of(module, text) == []


def test_every_listed_pair_of_edges_is_still_needed() -> None:
    """A pair that no longer imports one from the other is struck off the list."""
    sources = read_package(ROOT)
    needed: dict[str, set[str]] = {}
    for module, text in sources.items():
        for imported in imports(module, ast.parse(text), frozenset(sources)):
            if {layer_of(module), layer_of(imported.target)} == {"edges"}:
                importer, target = (name.rpartition(".")[2] for name in (module, imported.target))
                needed.setdefault(importer, set()).add(target)
    assert needed == EDGE_PAIRS


def test_violation_names_the_line() -> None:
    """The number in a report is the line of the offending import."""
    (found,) = _violations_of("gruard.models.cells", "import math\n\nimport paho.mqtt.client")
    assert found.startswith("gruard.models.cells:3:")


def test_bare_imports_are_found_anywhere_in_a_file() -> None:
    """A bare import inside a function counts, `gruard.models` does not."""
    assert bare_imports("import gruard.models\ndef f():\n    from models.cells import Network") == [3]


def test_scorer_command_never_imports_torch() -> None:
    """`gruard run --help` starts without torch and without the training side."""
    loaded = _modules_loaded_by("-m", "gruard.daemon", "run", "--help")
    assert "argparse" in loaded
    assert not {name for name in loaded if name.split(".")[0] == "torch"}
    assert not {name for name in loaded if name.startswith("gruard.models.training")}


def test_models_package_never_imports_torch() -> None:
    """`import gruard.models`, which offers Detector, does not load torch."""
    loaded = _modules_loaded_by("-c", "import gruard.models")
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_whole_scorer_never_imports_torch() -> None:
    """All modules load together without torch, but for the training side, its process and the demo."""
    names = [
        name
        for name in read_package(ROOT)
        if layer_of(name) not in {"training", "round", "demo"} and not name.endswith("__main__")
    ]
    program = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = json.loads(done.stdout)
    assert set(names) <= set(loaded)
    assert "torch" not in loaded
