"""The direction of imports as a table, and a checker that reads it off the syntax trees."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layer:
    """Where a module stands: what it may import, and whether it may read clocks or touch the outside."""

    modules: tuple[str, ...]  # patterns of full module names
    ours: tuple[str, ...] = ()  # layers it may import
    lazily: tuple[str, ...] = ()  # layers it may import inside functions or for types only
    packages: tuple[str, ...] = ()  # other people's packages that the whole layer may import
    clocks: bool = False
    pure: bool = False


_INNER = ("records", "models", "core")

#: The first layer with a fitting pattern counts; a module without one is a violation.
LAYERS: Mapping[str, Layer] = {
    "training": Layer(
        modules=("gruard.models.training", "gruard.models.training.*"),
        ours=("models", "training"),
        packages=("numpy", "safetensors", "torch"),
    ),
    "models": Layer(
        modules=("gruard.models", "gruard.models.*"),
        ours=("models",),
        lazily=("training",),
        packages=("numpy", "safetensors"),
        pure=True,
    ),
    "records": Layer(
        modules=("gruard.daemon", "gruard.daemon.records", "gruard.daemon.errors"),
        ours=("records",),
        packages=("numpy",),
        pure=True,
    ),
    "core": Layer(
        modules=(
            "gruard.daemon.core",
            "gruard.daemon.core.*",
            "gruard.daemon.decoders",
            "gruard.daemon.decoders.*",
        ),
        ours=_INNER,
        packages=("numpy", "msgspec"),
        pure=True,
    ),
    # Edges are not among their own `ours`: EDGE_PAIRS names the few that belong together.
    "edges": Layer(
        modules=("gruard.daemon.edges", "gruard.daemon.edges.*"),
        ours=_INNER,
        packages=("numpy", "msgspec"),
    ),
    "settings": Layer(
        modules=("gruard.daemon.settings*", "gruard.daemon.config_*"), ours=(*_INNER, "settings")
    ),
    "logs": Layer(modules=("gruard.daemon.logs",), ours=("records",), clocks=True),
    # The trainer's process: the one place where the daemon's side and torch meet. Nobody imports it.
    "round": Layer(
        modules=("gruard.daemon.training_round", "gruard.daemon.round_conduct", "gruard.daemon.anchor"),
        ours=(*_INNER, "training", "edges", "joints", "round"),
        packages=("numpy", "msgspec"),
        clocks=True,
    ),
    # Core and edges joined, still without a clock of their own.
    "joints": Layer(
        modules=tuple(
            f"gruard.daemon.{name}"
            for name in (
                "announcer",
                "commands",
                "enrolment",
                "feedback",
                "inspection",
                "intake",
                "pending",
                "pipeline",
                "promotions",
                "recording",
                "recovery",
                "round_pace",
                "rounds",
                "wiring",
            )
        ),
        ours=(*_INNER, "edges", "settings", "joints"),
        packages=("numpy", "msgspec"),
    ),
    "service": Layer(
        modules=("gruard.daemon.service*", "gruard.daemon.supervision", "gruard.daemon.replay"),
        ours=(*_INNER, "edges", "settings", "logs", "joints", "service"),
        packages=("numpy", "msgspec"),
        clocks=True,
    ),
    # Offline work on recordings: it may train, and it never touches a broker.
    "backtest": Layer(
        modules=("gruard.daemon.backtest", "gruard.daemon.backtest.*"),
        ours=(*_INNER, "training", "edges", "settings", "joints", "backtest"),
        packages=("numpy", "msgspec"),
        clocks=True,
    ),
    "demo": Layer(
        modules=("gruard.daemon.demo", "gruard.daemon.demo.*"),
        ours=(*_INNER, "edges", "settings", "logs", "joints", "service", "demo"),
        packages=("numpy", "msgspec"),
        clocks=True,
    ),
    "cli": Layer(
        modules=("gruard.daemon.cli*", "gruard.daemon.__main__"),
        ours=(*_INNER, "edges", "settings", "logs", "joints", "service", "demo", "cli"),
        lazily=("training", "backtest"),
        packages=("numpy", "msgspec"),
        clocks=True,
    ),
}

#: Edges that are one edge in several files: importer -> what it may import, below gruard.daemon.edges.
EDGE_PAIRS: Mapping[str, frozenset[str]] = {
    "broker": frozenset({"connection", "dial", "link", "mailbox", "publisher", "reconnect"}),
    "connection": frozenset({"backlog", "client", "dial", "link", "mailbox", "reconnect", "subscriptions"}),
    "client": frozenset({"dial"}),
    "dial": frozenset({"link"}),
    "publisher": frozenset({"link"}),
    "link": frozenset({"reconnect"}),
    "database": frozenset(
        {"bounds", "checksums", "history", "journal", "packs", "pages", "rows", "salvage", "schema", "tables"}
    ),
    "bounds": frozenset({"history", "journal", "packs"}),
    "kept_round": frozenset({"trainer"}),
    "journal": frozenset({"checksums", "history", "packs", "rows", "schema", "tables"}),
    "metrics": frozenset({"series"}),
    "history": frozenset({"packs", "rows", "tables"}),
    "tables": frozenset({"checksums", "packs", "rows"}),
    "schema": frozenset({"checksums", "pages"}),
    "salvage": frozenset({"checksums", "packs", "pages", "rows", "tables"}),
}
_EDGES = "gruard.daemon.edges."

#: The one module of its pure layer that reads and writes files: model packages.
TOUCHES_FILES = frozenset({"gruard.models.weights"})

#: Packages with one owner: pattern of the modules that may import them, besides a layer's own list.
OWNERS: Mapping[str, tuple[str, ...]] = {
    "iotcore": ("gruard.daemon.demo.*",),
    "matplotlib": ("gruard.daemon.backtest.chart",),
    "msgspec": ("gruard.models.weights",),
    "optuna": ("gruard.daemon.backtest.tune",),
    "paho": tuple(f"gruard.daemon.edges.{name}" for name in ("client", "connection", "publisher")),
    "prometheus_client": ("gruard.daemon.edges.metrics", "gruard.daemon.edges.series"),
    "psutil": ("gruard.daemon.demo.*",),
    "pydantic": ("gruard.daemon.settings*",),
    "pydantic_settings": ("gruard.daemon.settings*",),
    "rich": ("gruard.daemon.backtest.*", "gruard.daemon.demo.*", "gruard.daemon.cli*"),
}

_OUTSIDE_MODULES = frozenset(
    {
        *("asyncio", "concurrent", "http", "io", "multiprocessing", "os", "pathlib", "select", "selectors"),
        *("shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "tempfile"),
        *("threading", "urllib"),
    }
)

_CLOCKS = frozenset(
    {
        *(
            f"time.{name}{unit}"
            for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
            for unit in ("", "_ns")
        ),
        *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
        "datetime.date.today",
    }
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and when the import happens: on load, inside a function, or for types only."""

    target: str
    line: int
    when: Literal["load", "call", "types"]
    wildcard: bool = False


def read_package(root: Path) -> dict[str, str]:
    """Every module of the checkout at `root`, by the name under which users import it -> its source."""
    sources = {}
    for folder in ("daemon", "models"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            sources[".".join(("gruard", *parts)).removesuffix(".__init__")] = path.read_text("utf-8")
    return sources


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the table, as `module:line: sentence`; `sources` is module name -> source text."""
    found = []
    for module, text in sources.items():
        name = layer_of(module)
        if name is None:
            found.append(f"{module}:1: has no place in the table of layers")
            continue
        tree = ast.parse(text, filename=module)
        for imported in imports(module, tree, frozenset(sources)):
            found += [
                f"{module}:{imported.line}: {fault}" for fault in _import_faults(module, name, imported)
            ]
        found += [f"{module}:{line}: {fault}" for line, fault in _use_faults(module, LAYERS[name], tree)]
    return list(dict.fromkeys(found))


def bare_imports(text: str) -> list[int]:
    """Lines that import `daemon` or `models` by the bare name, a second copy of ours."""
    return [
        imported.line
        for imported in imports("outside", ast.parse(text), frozenset())
        if imported.target.partition(".")[0] in {"daemon", "models"}
    ]


def layer_of(module: str) -> str | None:
    """Name of the layer that a module of ours belongs to."""
    for name, layer in LAYERS.items():
        if _matches(module, layer.modules):
            return name
    return None


def imports(module: str, tree: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    """Every import in a module; `known` tells the submodules from the other names of a package."""
    is_package = any(name.startswith(f"{module}.") for name in known)
    pending: list[tuple[ast.AST, Literal["load", "call", "types"]]] = [(tree, "load")]
    while pending:
        node, when = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            package = _absolute(module, node, is_package=is_package)
            for alias in node.names:
                submodule = f"{package}.{alias.name}"
                target = submodule if submodule in known else package
                yield Import(target, node.lineno, when, wildcard=alias.name == "*")
        elif isinstance(node, ast.Call) and _last_name(node.func) == "import_module":
            argument = node.args[0] if node.args else None
            literal = argument.value if isinstance(argument, ast.Constant) else "<computed>"
            yield Import(str(literal), node.lineno, when)
        pending += _below(node, when)


def _below(
    node: ast.AST, when: Literal["load", "call", "types"]
) -> Iterator[tuple[ast.AST, Literal["load", "call", "types"]]]:
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for_types = (
        frozenset(map(id, node.body))
        if isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
        else frozenset()
    )
    for child in ast.iter_child_nodes(node):
        if id(child) in for_types:
            yield child, "types"
        else:
            yield child, "call" if lazy and when == "load" else when


def _import_faults(module: str, name: str, imported: Import) -> Iterator[str]:
    target, layer = imported.target, LAYERS[name]
    root = target.partition(".")[0]
    if imported.wildcard:
        yield f"imports everything from {target}"
    if root in {"daemon", "models"}:
        yield f"imports the bare name {root}, a second copy"
    elif root == "gruard":
        if not _ours_allowed(module, layer, imported):
            yield f"{name} may not import {target}"
    elif root not in sys.stdlib_module_names:
        if root not in layer.packages and not _matches(module, OWNERS.get(root, ())):
            yield f"{name} may not import the package {root}"
    elif root in _OUTSIDE_MODULES and imported.when != "types" and _is_pure(module, layer):
        yield f"imports {root}, but {name} is pure"


def _ours_allowed(module: str, layer: Layer, imported: Import) -> bool:
    target = layer_of(imported.target)
    if target in layer.ours or (imported.when != "load" and target in layer.lazily):
        return True
    pair = module.removeprefix(_EDGES), imported.target.removeprefix(_EDGES)
    return pair[1] in EDGE_PAIRS.get(pair[0], ())


def _use_faults(module: str, layer: Layer, tree: ast.Module) -> Iterator[tuple[int, str]]:
    local = _local_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            dotted = _dotted(node, local)
            if dotted in _CLOCKS and not layer.clocks:
                yield node.lineno, f"reads the clock {dotted}"
            if dotted == "open" and _is_pure(module, layer):
                yield node.lineno, "opens a file, but its layer is pure"


def _local_names(tree: ast.Module) -> dict[str, str]:
    """Names bound by imports -> what they stand for, dotted."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname is not None:
                    names[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.expr, local: Mapping[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return local.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, local)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def _absolute(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _is_pure(module: str, layer: Layer) -> bool:
    return layer.pure and module not in TOUCHES_FILES


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)
