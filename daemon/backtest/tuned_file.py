"""A configuration with other settings of the model: the user's own text where possible. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from gruard.daemon.config_toml import key_lines, write_toml
from gruard.daemon.settings import CONFIG_VERSION
from gruard.daemon.settings_tables import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

#: `key = value`, with or without `model.` before it and a comment behind it, on one line.
_PAIR = re.compile(
    r"""(\s*(?:model\s*\.\s*)?[\w"']+\s*=\s*)("[^"\\]*"|'[^']*'|[^\s#"',{}\[\]]+)(\s*(?:#.*)?)"""
)


def tuned(text: str | None, model: Model) -> str:
    """The configuration `text` with the [model] table changed to `model`; None: there is no file.

    Lines that need not change stay as they are. Where the table is written in a way that cannot be edited
    line by line, everything is written anew, with the same values and without comments.
    """
    if text is None:
        return write_toml({"version": CONFIG_VERSION, "model": model.model_dump()})
    tree = tomllib.loads(text)
    present = Model.model_validate(tree.get("model", {})).model_dump()
    changed = {name: value for name, value in model.model_dump().items() if value != present[name]}
    wanted = {**tree, "model": {**tree.get("model", {}), **changed}}
    edited = _edited(text, changed)
    return edited if _reads_as(edited, wanted) else write_toml(wanted)


def _edited(text: str, changed: Mapping[str, Any]) -> str:
    at = key_lines(text)
    lines = text.split("\n")
    missing = []
    for name, value in changed.items():
        pair = write_toml({name: value}).rstrip("\n")
        place = at.get(("model", name))
        found = None if place is None else _PAIR.fullmatch(lines[place - 1].rstrip("\r"))
        if place is None:
            missing.append(pair)
        elif found is not None:
            lines[place - 1] = f"{found[1]}{pair.partition(' = ')[2]}{found[3]}"
    header = at.get(("model",))
    if missing and header is None:
        lines = [*"\n".join(lines).rstrip("\n").split("\n"), "", "[model]", *missing, ""]
    elif missing and header is not None:
        # Below the table's header, or beside the first of keys that are written as model.KEY.
        prefix = "" if lines[header - 1].lstrip().startswith("[") else "model."
        lines[header:header] = [prefix + pair for pair in missing]
    return "\n".join(lines)


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False
