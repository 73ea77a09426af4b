"""Propositional formulas about one judged pair, and their models.

Propositions: M_w, M_l "the policy gives the better / worse response", R_w, R_l the same of the reference. A formula is
written with `&`, `|`, `~`, `>>` (implies), `True`, `False` and brackets; `~` binds tightest, then `>>`, `&`, `|`.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Mapping

PROPOSITIONS = ("M_w", "M_l", "R_w", "R_l")

Assignment = Mapping[str, bool]
Formula = Callable[[Assignment], bool]
"""Whether the formula holds where the propositions have these values."""


def parse_formula(text: str) -> Formula:
    """Return the formula a text stands for.

    Raises ValueError, naming what was found, for anything but propositions, `True`, `False`, `&`, `|`, `~`, `>>`.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"got {text!r} — expected a formula such as 'M_l >> M_w' or 'M_w & ~M_l'") from None
    return _meaning(tree, text)


def _meaning(node: ast.expr, text: str) -> Formula:
    match node:
        case ast.Name(id=name) if name in PROPOSITIONS:
            return lambda values: values[name]
        case ast.Constant(value=bool() as value):
            return lambda _: value
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            inner = _meaning(operand, text)
            return lambda values: not inner(values)
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.RShift() as operator, right=right):
            a, b = _meaning(left, text), _meaning(right, text)
            if isinstance(operator, ast.BitAnd):
                return lambda values: a(values) and b(values)
            if isinstance(operator, ast.BitOr):
                return lambda values: a(values) or b(values)
            return lambda values: not a(values) or b(values)
    raise ValueError(
        f"got {ast.unparse(node)!r} in the formula {text!r} — expected {', '.join(PROPOSITIONS)}, True, False, and "
        "& (and), | (or), ~ (not), >> (implies)"
    )


def propositions_in(*texts: str) -> tuple[str, ...]:
    """Return the propositions that the formulas mention, in the order of `PROPOSITIONS`."""
    names = {node.id for text in texts for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
    return tuple(name for name in PROPOSITIONS if name in names)


def assignments(names: tuple[str, ...]) -> list[Assignment]:
    """Return all 2^n truth assignments, all true first."""
    return [
        dict(zip(names, values, strict=True)) for values in itertools.product((True, False), repeat=len(names))
    ]  # fmt: skip
