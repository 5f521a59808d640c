"""The configuration: its schema, and `load`, which reads the file, the environment and the credentials.

Precedence: environment `GRUARD_MQTT__HOST` > credentials folder (secrets only) > TOML file > defaults.
Inner modules never see these models: the service hands them small records with units in their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from gruard.daemon.config_errors import FaultsError, Place, Problem, Shape, render, told
from gruard.daemon.config_sources import (
    PREFIX,
    Layer,
    gathered,
    overlaid,
    unknown_variables,
    value_at,
    variable,
)
from gruard.daemon.config_toml import KeyPath, write_toml
from gruard.daemon.config_values import derive_names, reads_own_output
from gruard.daemon.core.sources import parse_pattern
from gruard.daemon.errors import ConfigError
from gruard.daemon.settings_tables import (
    Alerts,
    Http,
    Label,
    Limits,
    Log,
    Model,
    Mqtt,
    Source,
    State,
    Table,
    Train,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gruard.daemon.records import SourceOptions

#: Version of the schema below; a file names the one it was written for.
CONFIG_VERSION = 1

_LOOP = (
    "would read what the daemon itself publishes below {base}/: begin the topic with a fixed level"
    " of its own, or change alerts.base"
)


class Settings(Table):
    """The whole configuration. Made by `load`; by itself it reads nothing."""

    version: int = CONFIG_VERSION
    """Version of this schema (number)."""
    mqtt: Mqtt = Mqtt()
    """The broker."""
    alerts: Alerts = Alerts()
    """Alerts."""
    # Behind `alerts`, whose base its check needs: fields are validated in this order.
    sources: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    """Where readings come from."""
    model: Model = Model()
    """The recurrent net."""
    train: Train = Train()
    """Training."""
    http: Http = Http()
    """Metrics and status page."""
    state: State = State()
    """The database."""
    limits: Limits = Limits()
    """Bounds."""
    log: Log = Log()
    """The log."""
    instance: Label = Field(default_factory=lambda valid: str(valid["mqtt"].client_id))
    """Name of this daemon in its alerts; mqtt.client_id when not set."""

    @field_validator("version")
    @classmethod
    def _version_is_ours(cls, version: int) -> int:
        if version != CONFIG_VERSION:
            raise ValueError(f"{version} is not known here: this gruard reads version {CONFIG_VERSION}")
        return version

    @field_validator("sources")
    @classmethod
    def _sources_fit_together(
        cls, sources: tuple[Source, ...], earlier: ValidationInfo
    ) -> tuple[Source, ...]:
        faults: list[tuple[KeyPath, str]] = []
        names = [source.name for source in sources]
        for place, source in enumerate(sources):
            if source.name and source.name in names[:place]:
                faults.append(((place, "name"), "is the name of another source too"))
            # absent when [alerts] itself is wrong, which is reported anyway
            alerts = earlier.data.get("alerts")
            if alerts and reads_own_output(parse_pattern(source.topic).filter, alerts.base):
                faults.append(((place, "topic"), _LOOP.format(base=alerts.base)))
        if faults:
            raise FaultsError(faults)
        nameless = [source.topic for source in sources if not source.name]
        derived = iter(derive_names(nameless, names))
        return tuple(s if s.name else s.model_copy(update={"name": next(derived)}) for s in sources)


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the configuration; without a path only environment, credentials and defaults.

    Raises:
        ConfigError: one line per problem, `FILE:LINE: key: what is wrong`, all of them together.
    """
    return load_traced(path, environ)[0]


def load_traced(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, Callable[[KeyPath], str]]:
    """Like `load`, and a function that tells for a key path where its value came from."""
    environment, problems = _environment_layer(environ)
    layers = gathered(environment, path, environ, _SECRETS, problems)
    tree = layers.merged()
    settings = None
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        problems += told(errors, _SHAPE, lambda key: value_at(tree, key), layers.nearest)
    if path and "version" not in tree:
        problems.append(Problem(Place(f"{path}:1", 1), ("version",), "is required: write version = 1"))
    # Raised out here so that the error drags along no other error with values in it.
    if problems or settings is None:
        raise ConfigError(render(problems))
    return settings, lambda key: layers.place(key).label


def effective(settings: Settings, origin: Callable[[KeyPath], str] | None = None) -> str:
    """The configuration as TOML with every key, secrets masked, the origin of each value as a comment."""
    return write_toml(settings.model_dump(mode="json"), origin)


def source_options(settings: Settings) -> tuple[SourceOptions, ...]:
    """The `[[sources]]` blocks as the decoders see them, in the order of the configuration."""
    return tuple(source.options for source in settings.sources)


class _Environment(BaseSettings, Settings):
    """Tells the library how the variables are called. Never made: its constructor would read by itself."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


_SHAPE = Shape(Settings.model_json_schema())
_VARIABLES = {variable(path): path for path in _SHAPE.leaves()}
_SECRETS = [path for path in _SHAPE.leaves() if _SHAPE.is_secret(path)]


def _environment_layer(environ: Mapping[str, str]) -> tuple[Layer, list[Problem]]:
    problems = unknown_variables(environ, _VARIABLES)
    source = EnvSettingsSource(_Environment)
    tree: dict[str, Any] = {}
    for name, path in _VARIABLES.items():
        if not environ.get(name):
            continue  # empty is as good as unset: container files often pass variables on that nobody set
        try:
            environ[name].encode()
        except UnicodeEncodeError:  # bytes that are not UTF-8 arrive as lone surrogates
            problems.append(Problem(Place(name), path, "is not UTF-8 text"))
            continue
        source.env_vars = {name.lower(): environ[name]}  # one at a time, so that an error has a name
        try:
            tree = overlaid(tree, source())
        except (SettingsError, RecursionError):
            as_json = " as JSON" if path == ("sources",) else ""
            problems.append(Problem(Place(name), path, f"must be {_SHAPE.expected(path)}{as_json}"))
    return Layer(tree, lambda key: Place(variable(key[:1] if key[0] == "sources" else key))), problems
