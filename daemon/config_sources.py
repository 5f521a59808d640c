"""The places that configuration comes from, as layers: file, environment, credentials folder, systemd.

A layer is a tree of values as the TOML reader gives it, and knows the place of each of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gruard.daemon.config_errors import Place, Problem, closest, dotted, render, shortened
from gruard.daemon.config_toml import KeyPath, key_lines
from gruard.daemon.errors import ConfigError

PREFIX = "GRUARD_"

#: Has our prefix and is no setting: where a torture test kills the daemon (gruard.daemon.edges.failpoints).
FAILPOINT = "GRUARD_FAILPOINT"

#: Stands for "no such key" where None may be a value.
ABSENT = object()

_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")

# Variables that Kubernetes puts into every container for a Service called "gruard" or "gruard-...".
_SERVICE_LINK = re.compile(
    r"(?!.*__)GRUARD_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place."""

    tree: Mapping[str, Any]
    place_of: Callable[[KeyPath], Place]


class Layers:
    """All layers together, the strongest first."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers

    def merged(self) -> dict[str, Any]:
        """One tree in which the stronger layer wins, key by key."""
        tree: dict[str, Any] = {}
        for layer in reversed(self._layers):
            tree = overlaid(tree, layer.tree)
        return tree

    def place(self, path: KeyPath) -> Place:
        """The place that gave the value at this path; "default" when none did."""
        given = [layer for layer in self._layers if value_at(layer.tree, path) is not ABSENT]
        # a value where a table belongs is kept by `overlaid`, so it is what a message is about
        given.sort(key=lambda layer: isinstance(value_at(layer.tree, path), Mapping))
        return given[0].place_of(path) if given else Place("default")

    def nearest(self, path: KeyPath) -> Place:
        """The place of this path, or of the innermost table around it that was given."""
        for length in range(len(path), 0, -1):
            place = self.place(path[:length])
            if place.label != "default":
                return place
        return Place("default")


def value_at(tree: object, path: KeyPath) -> object:
    """The value at a path, or ABSENT."""
    for part in path:
        if isinstance(tree, list):
            tree = dict(enumerate(tree))
        if not isinstance(tree, Mapping) or part not in tree:
            return ABSENT
        tree = tree[part]
    return tree


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees, `above` winning; it never hides a value of `below` that stands where a table belongs."""
    tree = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and key in tree:
            tree[key] = overlaid(tree[key], value) if isinstance(tree[key], Mapping) else tree[key]
        else:
            tree[key] = value
    return tree


def nested(path: KeyPath, value: object) -> dict[str, Any]:
    """A tree with one value in it."""
    for part in reversed(path):
        value = {part: value}
    return value if isinstance(value, dict) else {}


def gathered(
    environment: Layer,
    path: Path | None,
    environ: Mapping[str, str],
    secrets: Iterable[KeyPath],
    problems: list[Problem],
) -> Layers:
    """All layers, the environment in front; adds to `problems` what is wrong with a place itself.

    Raises:
        ConfigError: the file cannot be read at all, so that checking what it says is idle.
    """
    layers = [environment]
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        credentials, unreadable = credentials_layer(folder, secrets)
        layers.append(credentials)
        problems += unreadable
    if path:
        file = file_layer(path)
        if isinstance(file, Problem):
            raise ConfigError(render([file, *problems]))
        layers.append(file)
    # systemd lists the directories of StateDirectory= with colons between; a unit of ours has one
    if directory := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        given = nested(("state", "directory"), directory)
        layers.append(Layer(given, lambda _: Place("STATE_DIRECTORY")))
    return Layers(layers)


def file_layer(path: Path) -> Layer | Problem:
    """The TOML file; a problem when it cannot be read at all."""
    whole = Place(str(path), line=0)
    try:
        content = path.read_bytes()
    except OSError as error:
        return Problem(whole, (), f"cannot be read: {error.strerror or error}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Problem(Place(f"{path}:{line}", line), (), "is not UTF-8 text")
    try:
        tree = tomllib.loads(text)
        lines = key_lines(text)
    except RecursionError:
        return Problem(whole, (), "is nested too deeply")
    except ValueError as error:  # TOMLDecodeError, and integers too long for Python
        return _syntax_problem(path, str(error), text)

    def place_of(key: KeyPath) -> Place:
        while key and key not in lines:
            key = key[:-1]
        line = lines.get(key, 1)
        return Place(f"{path}:{line}", line)

    return Layer(tree, place_of)


def _syntax_problem(path: Path, message: str, text: str) -> Problem:
    found = _AT_LINE.search(message)
    line = int(found[1]) if found else text.count("\n") + 1
    at_line = found or message.endswith("(at end of document)")
    label = f"{path}:{line}" if at_line else str(path)
    return Problem(Place(label, line), (), f"is not valid TOML: {_AT_LINE.sub('', message)}")


def variable(path: KeyPath) -> str:
    """Name of the environment variable for a key: ("mqtt", "port") -> GRUARD_MQTT__PORT."""
    return PREFIX + "__".join(map(str, path)).upper()


def unknown_variables(environ: Mapping[str, str], names: Collection[str]) -> list[Problem]:
    """A problem for each variable with our prefix that is none of the known names."""
    is_kubernetes = "KUBERNETES_SERVICE_HOST" in environ
    problems = []
    for name in environ:
        if (
            not name.startswith(PREFIX)
            or name in {*names, FAILPOINT}
            or (is_kubernetes and _SERVICE_LINK.fullmatch(name))
        ):
            continue
        guess = closest(name.removeprefix(PREFIX), (known.removeprefix(PREFIX) for known in names))
        sentence = "unknown variable" + (f", did you mean {PREFIX}{guess}?" if guess else "")
        problems.append(Problem(Place(dotted((shortened(name),))), (), sentence))
    return problems


def credentials_layer(folder: str, secrets: Iterable[KeyPath]) -> tuple[Layer, list[Problem]]:
    """Secrets from files such as `mqtt_password`; other files there are not ours and stay unread."""
    tree: dict[str, Any] = {}
    problems: list[Problem] = []
    for path in secrets:
        place = _credential(path)
        try:
            content = (Path(folder) / _file_name(path)).read_bytes()
            text = content.decode().removesuffix("\n").removesuffix("\r")
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(place, path, f"cannot be read: {error.strerror or error}"))
        except UnicodeDecodeError:
            problems.append(Problem(place, path, "is not UTF-8 text"))
        else:
            if not text:
                problems.append(Problem(place, path, "is an empty file"))
            tree = overlaid(tree, nested(path, text))
    return Layer(tree, _credential), problems


def _file_name(path: KeyPath) -> str:
    return "_".join(map(str, path))


def _credential(path: KeyPath) -> Place:
    return Place(f"credential {_file_name(path)}")
