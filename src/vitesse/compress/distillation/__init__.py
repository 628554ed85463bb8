"""Distillation: a smaller network learns from a larger one, with ground truth or without."""
