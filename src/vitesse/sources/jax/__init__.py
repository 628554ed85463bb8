"""JAX functions and flax modules: wrapped, traced by jax2onnx, and held against JAX itself."""
