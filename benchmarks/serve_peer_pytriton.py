"""pytriton with a model that does next to nothing; started by serve_cost.py, by an interpreter that has pytriton.

PYTHON serve_peer_pytriton.py PORT GRPC_PORT METRICS_PORT
"""

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def null(images):
    """One float of each channel, as the null model of the benchmark gives it."""
    return {"logits": images[:, :, images.shape[2] // 2, images.shape[3] // 2]}


if __name__ == "__main__":
    http, grpc, metrics = map(int, sys.argv[1:4])
    config = TritonConfig(http_address="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="null",
            infer_func=null,
            inputs=[Tensor(name="images", dtype=np.float32, shape=(3, -1, -1))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=1),
        )
        triton.serve()
