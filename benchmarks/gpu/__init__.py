"""The target `torch-cuda` on a data-centre GPU, against torch, its compiler and ONNX Runtime; see `__main__`."""
