"""Formulas as text, and back: how the formula of a mask travels with a call to the lowering that wants it.

    And(q >= k, Eq(FloorDiv(q, 100), FloorDiv(k, 100)))   <->   "(q >= k) & Eq(FloorDiv(q, 100), FloorDiv(k, 100))"

A formula that reads tensors has no text.
"""

from __future__ import annotations

import sympy
from sympy.printing.str import StrPrinter
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from flex_inductor.mask.formula import POSITIONS, Where

Q_LEN, KV_LEN = (sympy.Symbol(name, integer=True, positive=True) for name in ("Q_LEN", "KV_LEN"))
"""The numbers of queries and keys, where they are not known."""

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


class FormulaPrinter(StrPrinter):
    """Every function by its name: torch's print themselves as Python operators, which to sympy are others."""

    printmethod = None


def format_formula(formula: sympy.Basic) -> str | None:
    """The text of a formula; None for one that has none: of other symbols, of loads, or too long."""
    text: str = FormulaPrinter().doprint(formula)
    if len(text) > LONGEST_TEXT or formula.free_symbols - set(NAMES.values()):
        return None
    try:
        return text if parse_formula(text) == formula else None
    except Exception:  # something in it is none of our names
        return None


def parse_formula(text: str) -> sympy.Basic:
    """The formula that was written. Raises NameError for what was not."""
    return sympy.sympify(eval(text, {"__builtins__": {}}, NAMES))
