"""Lowering: what the devices can do with a flex_attention call."""
