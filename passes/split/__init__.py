"""split: separates the mask from the arithmetic of a score."""
