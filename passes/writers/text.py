"""Writes scalar expressions as text that looks like Python, for people."""

from __future__ import annotations

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from flex_inductor.passes.site import Coordinates
from flex_inductor.scalar import Atom, Expr, known_of


class TextWriter:
    """Writes expressions of the four positions, which are called b, h, q and k. rank: of the operator around one; an
    expression gets parentheses if its own operator binds less."""

    def __init__(self, at: Coordinates) -> None:
        self.names = {at.b: "b", at.h: "h", at.q: "q", at.k: "k"}
        self.memo: dict[tuple[sympy.Expr, int], str] = {}

    def text(self, x: Expr, rank: int = 0) -> str:
        """An expression as text."""
        if x.op == "const":
            return _number(x.value)
        if x.op == "index":
            return self.integer(x.args[0], rank)
        if x.op == "dot":
            return "score"
        if x.op == "real":
            return str(x.args[0])
        if x.op == "load":
            places = ", ".join(self.integer(i) for i in x.args[1])
            return f"{x.args[0].name}[{places}]" if places else x.args[0].name
        if x.op == "wrap":
            return self.text(x.args[0], rank)
        row = known_of(x.op)
        if row.infix:
            sign, own = row.infix
            body = f" {sign} ".join(self.text(a, own + (i > 0)) for i, a in enumerate(x.args))
            return f"({body})" if own < rank else body
        if row.prefix:
            sign, own = row.prefix
            return sign + self.text(x.args[0], own)
        return f"{row.called or x.op}({', '.join(self.text(a) for a in x.args)})"

    def integer(self, e: sympy.Expr, rank: int = 0) -> str:
        if (e, rank) not in self.memo:
            self.memo[e, rank] = self.sum(e, rank)
        return self.memo[e, rank]

    def sum(self, e: sympy.Expr, rank: int) -> str:
        """Index arithmetic as text, by its operator."""
        if isinstance(e, Atom):
            return self.text(e.expr, rank)
        if e.is_Symbol:
            return self.names.get(e, str(e))
        if isinstance(e, (FloorDiv, Mod, PythonMod)):
            sign, own = ("//", 6) if isinstance(e, FloorDiv) else ("%", 6)
            body = f"{self.integer(e.args[0], own)} {sign} {self.integer(e.args[1], own + 1)}"
            return f"({body})" if own < rank else body
        if e.is_Add:
            terms = sorted(e.args, key=lambda t: (bool(t.could_extract_minus_sign()), t.is_Integer, self.integer(t)))
            body = self.integer(terms[0], 5)
            for term in terms[1:]:
                minus = term.could_extract_minus_sign()
                body += f" - {self.integer(-term, 6)}" if minus else f" + {self.integer(term, 6)}"
            return f"({body})" if rank > 5 else body
        if e.is_Mul:
            body = " * ".join(self.integer(a, 6) for a in e.args)
            return f"({body})" if rank > 6 else body
        if e.is_Pow:
            body = f"{self.integer(e.base, 9)} ** {self.integer(e.exp, 8)}"
            return f"({body})" if rank > 8 else body
        return str(e)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)
