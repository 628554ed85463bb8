"""LitServe with a model that does next to nothing; started by serve_cost.py, by an interpreter that has LitServe.

PYTHON serve_peer_litserve.py PORT WORKERS [fast]
"""

import math
import sys

import litserve
import numpy as np
from PIL import Image

SIDE = 224


class Null(litserve.LitAPI):
    """One pixel of an image, as the null model of the benchmark gives it: a tensor or a JPEG as a file of a form."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        if "image" in request:
            with Image.open(request["image"].file) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None]
            return (pixels / 255 - 0.5) / 0.5
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
