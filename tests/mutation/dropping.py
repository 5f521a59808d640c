"""An operator that cosmic-ray has not: leave one statement out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword, PythonNode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parso.tree import NodeOrLeaf

Position = tuple[int, int]


class DropStatement(Operator):
    """Puts `pass` in place of a call, an assignment to what is kept, a raise, a del, or an early return.

    Left alone: constructors and the assignment of a local name, whose loss any use of it shows.
    """

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and _counts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: PythonNode, index: int) -> PythonNode:
        del index  # there is one place only
        before = node.children[0].get_first_leaf()
        node.children[0] = Keyword("pass", before.start_pos, before.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("f(x)\n", "pass\n"),
            Example("self.x = 1\n", "pass\n"),
            Example("x += 1\n", "pass\n"),
            Example("raise ValueError\n", "pass\n"),
        )


def _counts(node: NodeOrLeaf) -> bool:
    function = node.search_ancestor("funcdef")
    if function is None or function.name.value == "__init__":
        return False
    match node.type:
        case "atom_expr" | "power":
            return node.children[-1].type == "trailer" and node.children[-1].children[0].value == "("
        case "expr_stmt":
            target, sign = node.children[:2]
            return target.type != "name" or getattr(sign, "value", "=") != "="
        case "raise_stmt" | "del_stmt":
            return True
        case "keyword":
            return node.value in {"return", "raise"}
        case _:
            return False
