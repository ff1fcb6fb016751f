"""What the masks and biases of a graph do with the inputs at hand: true block maps, counts of scores, tables of biases.

`planned` takes out of the rewritten graph what computes masks and biases, without any attention; `measure` reads the
numbers that it gives. Nothing of the size of the scores is held in memory."""

from flex_inductor.given.measure import measured
from flex_inductor.given.plan import Plan, planned

__all__ = ["Plan", "measured", "planned"]
