"""Structured pruning: channels, feed-forward widths and heads are cut out, and a smaller normal network is left."""
