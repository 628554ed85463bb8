"""Kernels of the fused steps: library calls and own Triton kernels, one module each; the table is in candidates.py."""
