"""Rows on a terminal, or as JSON for scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: Columns of devices and alerts that a table on a terminal has no room for.
JSON_ONLY = ("threshold", "time", "group", "first_score_s", "ready_s", "ready_at")


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool, hidden: Collection[str] = JSON_ONLY
) -> int:
    """Print rows with the same keys, as a table without the `hidden` ones; returns the exit status."""
    if as_json:
        print(json.dumps(rows, indent=1, allow_nan=False))
        return 0
    from rich.console import Console  # noqa: PLC0415 - `--help` is instant
    from rich.table import Table  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    shown = [name for name in (rows[0] if rows else {"nothing here yet": None}) if name not in hidden]
    table = Table(*shown, box=None)
    for row in rows:
        # Text is shown as it is: names come from topics, and brackets would be markup.
        table.add_row(*(Text("" if row[name] is None else str(row[name])) for name in shown))
    Console().print(table)
    return 0
