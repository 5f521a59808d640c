"""gruard.daemon.config_toml: the line of each key, and TOML text that reads back as what was written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.config_toml import key_lines, write_toml

if TYPE_CHECKING:
    from gruard.daemon.config_toml import KeyPath

ROOT = Path(__file__).parent.parent

AWKWARD = '''# comment = 1 [x]
a = 1 # trailing = 2
"b # = ]" = """
c = 3
[not.a.table]
"""
'd.e' = '# [no]'

f."g.h" . 'i' = [ # start
  1, [2, 3], # = [
  { j = "}", k = [ 4 ] },
  """x]
y""", \'\'\'z
'\'\'\',
]
"\\u00e4" = 1979-05-27 07:32:00.5
[l.m]
n = {}
[[o]]
p = 1.5e-3
[o.q]
r = ""
[[o.s]]
[[o]]
[[o.s]]
t = [""""quoted"""", "]", \'\'\'a\'\'\'\', ']']
[[o.s]]
'''


def paths(tree: object, path: KeyPath = ()) -> set[KeyPath]:
    found = {path} if path else set()
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return found.union(*(paths(value, (*path, key)) for key, value in inner))


def test_key_lines_of_awkward_text_are_those_of_the_eye() -> None:
    """Comments, quotes, multi-line strings and arrays, dotted keys and arrays of tables do not mislead."""
    lines = key_lines(AWKWARD)
    assert set(lines) == paths(tomllib.loads(AWKWARD))
    expected: dict[KeyPath, int] = {
        ("a",): 2,
        ("b # = ]",): 3,
        ("d.e",): 7,
        ("f", "g.h", "i"): 9,
        ("f", "g.h", "i", 0): 10,
        ("f", "g.h", "i", 1, 1): 10,
        ("f", "g.h", "i", 2, "k", 0): 11,
        ("f", "g.h", "i", 4): 13,
        ("ä",): 16,
        ("l", "m", "n"): 18,
        ("o", 0): 19,
        ("o", 0, "q", "r"): 22,
        ("o", 0, "s", 0): 23,
        ("o", 1): 24,
        ("o", 1, "s", 0, "t"): 26,
        ("o", 1, "s", 1): 27,
    }
    assert {path: lines[path] for path in expected} == expected


@pytest.mark.parametrize("path", ["pyproject.toml", "deploy/gruard.example.toml"])
def test_key_lines_finds_every_key_of_real_files(path: str) -> None:
    """Files that people wrote are followed to the end."""
    text = (ROOT / path).read_text()
    assert set(key_lines(text)) == paths(tomllib.loads(text))


TEXT = st.text(st.sampled_from("ab \t'\"#=[]{},.\n\\é🌡"), max_size=6)
SCALARS = st.one_of(
    TEXT.map(lambda text: write_toml({"k": text})[4:].strip("\n")),
    TEXT.filter(lambda text: "'" not in text and "\n" not in text).map(lambda text: f"'{text}'"),
    TEXT.filter(lambda text: "'" not in text).map(lambda text: f"'''{text}'''"),
    TEXT.filter(lambda text: "\\" not in text and '"' not in text).map(lambda text: f'"""{text}"""'),
    st.sampled_from(["1", "-0x1F", "1_000.5e-3", "nan", "true", "07:32:00", "1979-05-27T07:32:00.9Z"]),
    st.sampled_from(['"""a""""', "'''a'''''", '""""""', "''''''", '"""\\"""""""']),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[ # ]\n" + ",\n".join(items) + "\n]"),
        st.lists(inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"i{place} = {item}" for place, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=6,
)
SPELLINGS = st.sampled_from(["{}", '"{}"', "'{}'", '"{} # = ["', "x{}.y . z"])
STATEMENTS = st.lists(
    st.one_of(
        st.tuples(st.just("pair"), SPELLINGS, VALUES),
        st.tuples(st.just("table"), st.sampled_from(["t{}", "array.t{}", "array.rows.t{}"]), st.just("")),
        st.tuples(st.just("element"), st.sampled_from(["array", "array.rows", "other"]), st.just("")),
        st.tuples(st.just("comment"), st.just("# [k{}] = '"), st.just("")),
    ),
    max_size=12,
)


@given(STATEMENTS)
def test_key_lines_agrees_with_the_standard_reader(statements: list[tuple[str, str, str]]) -> None:
    """For any valid text: the same keys as the standard library's reader, each on the line it was put on."""
    text = "[[array]]\n[[array.rows]]\n"
    expected: dict[int, int] = {}
    for number, (kind, spelling, value) in enumerate(statements):
        key = spelling.format(f"k{number}")
        if kind == "pair":
            expected[number] = text.count("\n") + 1
        text += {"pair": f"{key} = {value}", "table": f"[{key}]", "element": f"[[ {key} ]]"}.get(
            kind, key
        ) + "\n"
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a table under another element than the newest is not ours to judge
    lines = key_lines(text)
    assert set(lines) == paths(tree)
    for number, line in expected.items():
        found = {
            at for path, at in lines.items() if any(f"k{number}" in str(part).split()[:1] for part in path)
        }
        found |= {at for path, at in lines.items() if any(str(part) == f"xk{number}" for part in path)}
        assert line in found


@given(st.text(st.sampled_from("a\n =.,[]{}#"), max_size=20))
def test_key_lines_comes_to_an_end_on_any_text(text: str) -> None:
    """Text that is no TOML gives lines that mean nothing, but start-up never hangs on it."""
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())


KEYS = st.text(max_size=5)
SCALAR_VALUES = st.one_of(
    st.text(max_size=8), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)
)
TREES = st.dictionaries(
    KEYS,
    st.one_of(
        SCALAR_VALUES.filter(lambda value: value not in {float("inf"), -float("inf")}),
        st.lists(st.text(max_size=4), max_size=3),
        st.dictionaries(KEYS, st.dictionaries(KEYS, st.text(max_size=4), max_size=2), max_size=3),
        st.lists(st.dictionaries(KEYS, st.dictionaries(KEYS, st.booleans()), max_size=2), max_size=3),
    ),
    max_size=5,
)


@given(TREES)
def test_write_toml_reads_back_as_it_was(tree: dict[str, object]) -> None:
    """Any tree of strings, numbers, lists and tables survives writing and reading."""
    assert tomllib.loads(write_toml(tree)) == tree
