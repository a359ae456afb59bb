"""sparktorch's parameter server, in its own environment: exchanges per second with a model of 5 MB. Prints one line of JSON."""

from __future__ import annotations

import json
import os
import time

import requests
import torch
from sparktorch.hogwild import get_state_dict, put_deltas_to_server  # pyright: ignore[reportMissingImports]
from sparktorch.server import Server  # pyright: ignore[reportMissingImports]
from sparktorch.util import serialize_torch_obj_lazy  # pyright: ignore[reportMissingImports]

ROUNDS, PORT = 20, 4703


def main() -> None:
    model = torch.nn.Linear(1249, 1000)  # 1,250,000 numbers
    sizes = {"in_features": 1249, "out_features": 1000}
    described = serialize_torch_obj_lazy(torch.nn.Linear, torch.nn.MSELoss, torch.optim.SGD, {"lr": 1e-9}, sizes)
    server = Server(described, port=PORT)
    server.start_server()
    at = f"localhost:{PORT}"
    for _ in range(200):
        try:
            requests.get(f"http://{at}/", timeout=1)
            break
        except requests.ConnectionError:
            time.sleep(0.1)
    delta = [torch.full_like(p, 1e-9) for p in model.parameters()]
    get_state_dict(at)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        put_deltas_to_server(delta, at)
        get_state_dict(at)
    print(json.dumps({"HTTP, 5 MB": ROUNDS / (time.perf_counter() - began)}), flush=True)
    server.stop_server()
    os._exit(0)


if __name__ == "__main__":
    main()
