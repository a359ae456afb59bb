"""The parameter server beside bare transports and beside its peers, in one run.

Exchanges (one push and one pull) per second and gigabytes per second, at 1 kB, 5 MB and 100 MB, with one and two clients and
one and two servers, against a raw Flight echo of the same bytes and against gloo's send and receive on loopback; merges
against an in-place `add_`; and the parameter servers of elephas and sparktorch, in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import torch
import torch.distributed as dist

import firesteel
from benchmarks import report
from firesteel.net import certificates
from firesteel.net.center import Note, Rules
from firesteel.net.client import Address, CenterNet
from firesteel.net.protocol import Push, drive
from firesteel.net.serving import Server, Serving, cut
from firesteel.trace import Trace

SIZES = {"1 kB": 256, "5 MB": 1_250_000, "100 MB": 25_000_000}  # float32 numbers
ROUNDS = {"1 kB": 2000, "5 MB": 100, "100 MB": 8}
HOST = "127.0.0.1"
PEERS = {
    "elephas": ["elephas==7.3.0", "tensorflow-cpu<2.20"],
    "sparktorch": ["torch==2.13.0", "numpy", "pyspark", "sparktorch==0.2.0"],
}


# ---- servers, each a process -----------------------------------------------------------------------------------------


class Echo(flight.FlightServerBase):
    """What a bare Flight server can do: hands back what comes in."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        begun = False
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return
            if not begun:
                writer.begin(chunk.data.schema)
                begun = True
            writer.write_with_metadata(chunk.data, chunk.app_metadata)


def echo(pipe: Any, tls: Any) -> None:
    torch.set_num_threads(1)
    scheme, more = ("grpc+tls", {"tls_certificates": [tls]}) if tls else ("grpc", {})
    server = Echo(f"{scheme}://{HOST}:0", **more)
    pipe.send(server.port)
    server.serve()


def center(pipe: Any, tls: Any, strategy: Any, size: int, shards: int, number: int, clients: int) -> None:
    torch.set_num_threads(1)
    rules = Rules(max_growth=1e30)
    zeros, none = torch.zeros(size), torch.zeros(0)
    serving = Serving(strategy, zeros, none, clients, shards, HOST, HOST, "token", rules, ("", 0, ""), tls, None, None, {})
    server = Server(serving, number, tempfile.mkdtemp())
    pipe.send(server.port)
    server.serve()


# ---- clients, each a process -----------------------------------------------------------------------------------------


def talk(pipe: Any, kind: str, ports: list[int], tls: Any, size: int, rounds: int, rank: int, clients: int) -> None:
    torch.set_num_threads(1)
    address = Address(tuple(f"{HOST}:{port}" for port in ports), "token", tls[0] if tls else None)
    parts = cut(size, len(ports))
    delta = torch.full((size,), 1e-9)
    if kind == "ours":
        net = CenterNet(rank, clients, 0, lambda: address, parts, torch.float32, Trace(rank))
        net.note = lambda: Note(1, net.sequence, 8, 8.0, 1.0, 0.0, 0.1, 0.1)
        net.join()

        async def exchange() -> None:
            _ = await net.exchange(delta)

        once = lambda: drive(exchange())  # noqa: E731
    else:
        schema = pa.schema([("x", pa.float32())])
        numbers = [pa.record_batch([pa.array(delta[p].numpy())], schema=schema) for p in parts]
        scheme, trust = ("grpc+tls", {"tls_root_certs": tls[0]}) if tls else ("grpc+tcp", {})
        streams = []
        for port in ports:
            client = flight.connect(f"{scheme}://{HOST}:{port}", **trust)
            streams.append((client, *client.do_exchange(flight.FlightDescriptor.for_command(b"echo"))))
            streams[-1][1].begin(schema)

        def once() -> None:
            for (_, writer, _), batch in zip(streams, numbers, strict=True):
                writer.write_with_metadata(batch, b"note")
            for _, _, reader in streams:
                reader.read_chunk()

    for _ in range(3 if rounds < 20 else 20):
        once()
    pipe.send("ready")
    pipe.recv()
    began = time.perf_counter()
    for _ in range(rounds):
        once()
    pipe.send(rounds / (time.perf_counter() - began))
    pipe.recv()


def gloo(pipe: Any, rank: int, store: str, size: int, rounds: int) -> None:
    """Rank 1 sends and receives; rank 0 receives and sends."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    x = torch.zeros(size)
    rate = 0.0
    for count in (3, rounds):
        began = time.perf_counter()
        for _ in range(count):
            for step in (0, 1):
                (dist.send if step == 1 - rank else dist.recv)(x, 1 - rank)
        rate = count / (time.perf_counter() - began)
    pipe.send(rate)
    dist.destroy_process_group()


def measured(kind: str, label: str, clients: int, shards: int, tls: Any = None) -> float:
    """Exchanges per second of all clients."""
    size, rounds, context = SIZES[label], ROUNDS[label] // clients + 1, mp.get_context("spawn")
    processes, ports = [], []
    for number in range(shards):
        ours, theirs = context.Pipe()
        args = (theirs, tls, firesteel.Downpour(), size, shards, number, clients) if kind == "ours" else (theirs, tls)
        processes.append(context.Process(target=center if kind == "ours" else echo, args=args, daemon=True))
        processes[-1].start()
        ports.append(ours.recv())
    pipes = []
    for rank in range(clients):
        ours, theirs = context.Pipe()
        args = (theirs, kind, ports, tls, size, rounds, rank, clients)
        processes.append(context.Process(target=talk, args=args, daemon=True))
        processes[-1].start()
        pipes.append(ours)
    _ = [_heard(p) for p in pipes]
    _ = [p.send("go") for p in pipes]
    rate = sum(_heard(p) for p in pipes)
    for p in processes:
        p.kill()
        p.join()
    return rate


def _heard(pipe: Any) -> Any:
    """What a client says; it has a minute, so that one that fails does not hang the rest."""
    if not pipe.poll(120):
        raise SystemExit("a client has not answered for two minutes; its error stands above.")
    return pipe.recv()


def measured_gloo(label: str) -> float:
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in (0, 1):
            ours, theirs = context.Pipe()
            args = (theirs, rank, f"{folder}/store", SIZES[label], ROUNDS[label])
            processes.append(context.Process(target=gloo, args=args, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        rates = [p.recv() for p in pipes]
        _ = [p.join() for p in processes]
    return rates[1]


# ---- merges ----------------------------------------------------------------------------------------------------------


def merges(label: str) -> list[list[str]]:
    """Each merge beside an in-place `add_` of the same size, interleaved."""
    torch.set_num_threads(1)
    size = SIZES[label]
    middle, delta, seen, pulled = torch.randn(size), torch.randn(size) * 1e-6, torch.randn(size), torch.randn(size)
    contestants: dict[str, Any] = {"add_": lambda: middle.add_(delta)}
    for strategy in (firesteel.Downpour(), firesteel.AGN(), firesteel.DynSGD(), firesteel.ADAG()):
        push = Push(delta, 3, seen, 0, 1, 5)
        contestants[type(strategy).__name__] = lambda s=strategy, push=push: s.merge(middle, push)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(60 if label == "5 MB" else 12):
        for name, call in contestants.items():
            seen.copy_(pulled)  # a merge may use it up
            began = time.perf_counter()
            _ = call()
            seconds[name].append(time.perf_counter() - began)
    best = {name: statistics.median(found) for name, found in seconds.items()}
    rows = []
    for name, took in best.items():
        bar = 0.3 if name == "ADAG" else 0.8
        share = best["add_"] / took
        met = "" if name == "add_" else f"{bar:.0%}, {'met' if share >= bar else 'NOT MET'}"
        rows.append([f"{name}, {label}", f"{took * 1e3:.3f}", f"{share:.0%}", met])
    return rows


# ---- peers -----------------------------------------------------------------------------------------------------------


def peer(package: str, requirements: list[str], folder: Path) -> dict[str, float] | str:
    """Exchanges per second of a published package, in its own environment."""
    python = folder / package / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / package)], check=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], capture_output=True, text=True)
        if done.returncode:
            return f"cannot be installed: {done.stderr.strip().splitlines()[-1][:200]}"
    script = Path(__file__).with_name(f"peer_{package}.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([str(python), str(script)], capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        return f"does not run: {done.stderr.strip().splitlines()[-1][:200]}"
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--repetitions", type=int, default=3)
    flags.add_argument("--peers", default="build/peers", help="folder for the peers' environments; 'none' leaves them out")
    given = flags.parse_args()
    certificate = certificates.make(HOST)
    table, worst = [], 9.9
    for label in SIZES:
        through_gloo = statistics.median(measured_gloo(label) for _ in range(given.repetitions))
        for clients, shards, tls in ((1, 1, None), (2, 1, None), (1, 2, None), (2, 2, None), (1, 1, certificate)):
            found: dict[str, list[float]] = {"ours": [], "echo": []}
            for _ in range(given.repetitions):
                for kind, rates in found.items():
                    rates.append(measured(kind, label, clients, shards, tls))
            ours, limit = (statistics.median(found[kind]) for kind in ("ours", "echo"))
            gigabytes = ours * 2 * 4 * SIZES[label] / 1e9
            what = (
                f"{label}, {clients} client{'s' * (clients > 1)}, {shards} server{'s' * (shards > 1)}{', TLS' if tls else ''}"
            )
            share = ours / limit
            worst = min(worst, share)
            row = [what, f"{ours:,.1f}", f"{gigabytes:.3g}", f"{limit:,.1f}", f"{share:.0%}", f"{through_gloo:,.1f}"]
            table.append(row)
            print(row, flush=True)
    parts = [
        "## The parameter server",
        "Exchanges (a push and a pull) per second of all clients together, medians of "
        f"{given.repetitions}, all processes on this machine's two cores, loopback; `make bench-server`. Echo: a bare "
        "Arrow Flight server that hands back what comes in (the server itself speaks plain TCP), TLS against TLS. gloo: one "
        "pair of processes, send and receive.",
        report.table(["", "exchanges/s", "GB/s", "Flight echo", "of it", "gloo"], table),
        f"The bar is 80 % of the echo; the lowest is {worst:.0%}, {'met' if worst >= 0.8 else 'NOT MET'}.",
        "Merges beside an in-place `add_`:",
        report.table(["", "ms", "of add_", "bar"], [*merges("5 MB"), *merges("100 MB")]),
    ]
    if given.peers != "none":
        ours = {label: measured("ours", label, 1, 1) for label in ("1 kB", "5 MB")}
        rows = []
        for package, requirements in PEERS.items():
            found = peer(package, requirements, Path(given.peers))
            if isinstance(found, str):
                rows.append([package, found, ""])
                continue
            rows += [[f"{package}, {k}", f"{v:,.2f}", f"{ours[k.split(', ')[1]] / v:.1f}"] for k, v in found.items()]
        rows += [[f"Firesteel, {label}", f"{rate:,.1f}", "1"] for label, rate in ours.items()]
        parts += [
            "Beside the parameter servers of elephas and sparktorch, models of 1 kB and of 5 MB, one client:",
            report.table(["", "exchanges/s", "ours / theirs"], rows),
        ]
    text = "\n\n".join(parts)
    print(text)
    report.write("bench-server", text)


if __name__ == "__main__":
    main()
