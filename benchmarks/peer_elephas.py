"""elephas's parameter servers, in its own environment: exchanges per second with a model of 5 MB. Prints one line of JSON."""

from __future__ import annotations

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


def main() -> None:
    model = tf.keras.Sequential([tf.keras.layers.Input((1249,)), tf.keras.layers.Dense(1000)])  # 1,250,000 numbers
    model.compile("sgd", "mse")
    found = {}
    for name, server_class, client_class, port in (
        ("HTTP", HttpServer, HttpClient, 4701),
        ("socket", SocketServer, SocketClient, 4702),
    ):
        server = server_class(model_to_dict(model), port, "asynchronous", debug=False)
        server.start()
        client = client_class(port)
        delta = [np.full_like(w, 1e-9) for w in client.get_parameters()]
        began = time.perf_counter()
        for _ in range(ROUNDS):
            client.update_parameters(delta)
            client.get_parameters()
        found[name] = ROUNDS / (time.perf_counter() - began)
        if name == "HTTP":
            server.stop()
    print(json.dumps(found), flush=True)
    os._exit(0)  # the socket server's thread would keep it alive


if __name__ == "__main__":
    main()
