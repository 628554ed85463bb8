"""Why the output of a model is zeros, NaN or wrong, and what mends it."""
