"""Writers: each turns a scalar expression into something else: a graph (the mods), text, a formula, or a bound."""
