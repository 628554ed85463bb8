"""Kernels of the fused steps: library calls and own Triton kernels, one module for each; the table is in candidates.py."""
