"""Which channels, heads, layers and queries of a network matter, by weights, by gradients and by leaving them out."""
