"""Send a tensor to a running `vitesse serve` with NVIDIA's client, which knows nothing of Vitesse.

pip install 'tritonclient[http]'
python examples/clients/triton_client.py [--url localhost:8000]
"""

from __future__ import annotations

import argparse

import numpy as np
import tritonclient.http as triton


def main() -> None:
    """Ask for the model's inputs, send noise of that shape, print the shapes of what comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="localhost:8000")
    options = parser.parse_args()
    client = triton.InferenceServerClient(options.url)
    name = client.get_model_repository_index()[0]["name"]
    inputs = []
    for known in client.get_model_metadata(name)["inputs"]:
        shape = [1 if size < 0 else size for size in known["shape"]]
        noise = (
            np.random.default_rng(0).normal(size=shape).astype(triton.triton_to_np_dtype(known["datatype"]))
        )
        entry = triton.InferInput(known["name"], shape, known["datatype"])
        entry.set_data_from_numpy(noise)
        inputs.append(entry)
    answer = client.infer(name, inputs)
    for output in answer.get_response()["outputs"]:
        print(output["name"], output["datatype"], answer.as_numpy(output["name"]).shape)


if __name__ == "__main__":
    main()
