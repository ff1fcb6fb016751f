"""lift: what does an element of the scores mean, in the coordinates (b, h, q, k)? From a candidate to a site."""
