"""lift: writes the element of the scores at (b, h, q, k) out as an expression. Makes sites of candidates."""
