"""Formulas as text, and back. As text, the formula of a mask is an option of a call, which the lowering reads.

    (q >= k) & Eq(FloorDiv(q, 100), FloorDiv(k, 100))   ->   (q >= k) & Eq(FloorDiv(q, 100), FloorDiv(k, 100))

A formula that reads tensors has no text.
"""

from __future__ import annotations

import ast

import sympy
from sympy.printing.str import StrPrinter
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from flex_inductor.mask.formula import POSITIONS, Where

Q_LEN, KV_LEN = (sympy.Symbol(name, integer=True, positive=True) for name in ("Q_LEN", "KV_LEN"))
"""The numbers of queries and keys, if they are dynamic."""

FUNCTIONS = (FloorDiv, Max, Min, Mod, PythonMod, Where, sympy.Abs)
LONGEST_TEXT = 2000
NAMES = {
    **{f.__name__: f for f in FUNCTIONS},
    **{s.name: s for s in (*POSITIONS, Q_LEN, KV_LEN)},
    "Eq": sympy.Eq,
    "Ne": sympy.Ne,
    "True": sympy.true,
    "False": sympy.false,
}
SYNTAX = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Compare, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
          ast.cmpop)  # fmt: skip


class FormulaPrinter(StrPrinter):
    """Prints every function by its name. torch's functions print themselves as Python operators otherwise, which sympy
    would read as other functions."""

    printmethod = None


def format_formula(formula: sympy.Basic) -> str | None:
    """The text of a formula. None if it has loads or other symbols in it, or would be too long."""
    text: str = FormulaPrinter().doprint(formula)
    if len(text) > LONGEST_TEXT or formula.free_symbols - set(NAMES.values()):
        return None
    try:
        return text if parse_formula(text) == formula else None
    except Exception:  # it has a name in it that is not in NAMES
        return None


def parse_formula(text: str) -> sympy.Basic:
    """The formula of a text that format_formula wrote. Raises NameError for other names, and ValueError for anything
    but names, numbers, operators and calls: a graph may come from a file, and text is no way to bring code along."""
    if not all(_is_plain(part) for part in ast.walk(ast.parse(text, mode="eval"))):
        raise ValueError(f"not a formula: {text[:80]}")
    return sympy.sympify(eval(text, {"__builtins__": {}}, NAMES))


def _is_plain(part: ast.AST) -> bool:
    """Whether a part of a text is one that formulas are made of. sympy would run a string."""
    return isinstance(part.value, (int, float)) if isinstance(part, ast.Constant) else isinstance(part, SYNTAX)
