"""sparsity: which blocks of a site's scores are needed? As a share, as a picture, and as lists in the graph."""
