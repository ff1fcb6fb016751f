"""What a scalar expression is turned into: a graph (the mods), text, a formula over blocks, a bound of its integers."""
