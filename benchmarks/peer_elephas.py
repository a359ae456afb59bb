"""elephas's parameter servers, in its own environment: exchanges per second at 1 kB and 5 MB. Prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import os
import time

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingImports]
from elephas.parameter.client import HttpClient, SocketClient  # pyright: ignore[reportMissingImports]
from elephas.parameter.server import HttpServer, SocketServer  # pyright: ignore[reportMissingImports]
from elephas.utils.serialization import model_to_dict  # pyright: ignore[reportMissingImports]

ROUNDS = 20
SHAPES = {"1 kB": (255, 1), "5 MB": (1249, 1000)}  # inputs and outputs of a layer: 256 and 1,250,000 numbers


def main() -> None:
    found, kinds = {}, (("HTTP", HttpServer, HttpClient), ("socket", SocketServer, SocketClient))
    for port, (label, (name, server_class, client_class)) in enumerate(itertools.product(SHAPES, kinds), 4701):
        inputs, outputs = SHAPES[label]
        model = tf.keras.Sequential([tf.keras.layers.Input((inputs,)), tf.keras.layers.Dense(outputs)])
        model.compile("sgd", "mse")
        server = server_class(model_to_dict(model), port, "asynchronous", debug=False)
        server.start()
        client = client_class(port)
        delta = [np.full_like(w, 1e-9) for w in client.get_parameters()]
        began = time.perf_counter()
        for _ in range(ROUNDS):
            client.update_parameters(delta)
            client.get_parameters()
        found[f"{name}, {label}"] = ROUNDS / (time.perf_counter() - began)
        if name == "HTTP":
            server.stop()
    print(json.dumps(found), flush=True)
    os._exit(0)  # the socket servers' threads would keep it alive


if __name__ == "__main__":
    main()
