"""Computes formulas of blocks on tensors, and the lists of blocks that a BlockMask needs."""
