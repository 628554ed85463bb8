"""LitServe with a model that does next to nothing; started by serve_cost.py, by an interpreter that has LitServe.

PYTHON serve_peer_litserve.py PORT WORKERS [fast]
"""

import math
import sys

import litserve
import numpy as np


class Null(litserve.LitAPI):
    """One float of an image, as the null model of the benchmark gives it: the tensor comes as a file of a form."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        values = np.frombuffer(request["tensor"].file.read(), np.float32)
        side = math.isqrt(values.size // 3)
        return values.reshape(1, 3, side, side)

    def predict(self, images):
        return images[:, :, images.shape[2] // 2, images.shape[3] // 2]

    def encode_response(self, logits):
        return {"logits": logits.tolist()}


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    server = litserve.LitServer(
        Null(), accelerator="cpu", workers_per_device=workers, fast_queue="fast" in sys.argv[3:]
    )
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
