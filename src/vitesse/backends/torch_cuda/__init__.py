"""A data-centre GPU through PyTorch: the verified ONNX graph as a plan of fused kernels, replayed as one CUDA graph.

importing ──▶ specialise ──▶ rewrite/ ──▶ tactics ──▶ plan ──▶ session
ONNX file     one shape,     fused        measured    bound    CUDA graph
              constants      steps        once, kept  kernels  per shape
              folded                      in the file
"""
