"""The limit: one process, one thread, indexed tensors, no framework. Prints one line of JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn


def main(path: str, kernel: str = "") -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found = np.load(path)
    x, y = torch.from_numpy(found["x"]).float().div_(255), torch.from_numpy(found["y"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=kernel == "fused" or None)
    began, first = time.perf_counter(), time.time()
    for _ in range(2):
        order = torch.randperm(len(x))
        for i in range(0, len(x), 64):
            index = order[i : i + 64]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    rate = 2 * len(x) / (time.perf_counter() - began)
    weights = tempfile.mktemp(suffix=".npz")
    np.savez(weights, **{k: v.numpy() for k, v in model.state_dict().items()})
    print(json.dumps({"samples/s": rate, "first": first, "weights": weights}))


if __name__ == "__main__":
    main(*sys.argv[1:])
