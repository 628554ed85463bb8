"""The CUDA runtime that every GPU backend shares: buffers allocated once, streams, events, graphs. No torch."""
