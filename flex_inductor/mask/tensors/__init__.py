"""Formulas computed on tensors: block by block, and the lists of blocks that come of it."""
