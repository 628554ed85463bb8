"""TensorRT and TensorRT for RTX: one builder and one session for both, told apart by what a module has."""
