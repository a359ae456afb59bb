r"""What collectives and exchanges cost on equal hosts, in closed form: seconds and bytes.

Symbols: n workers, S bytes, \(\alpha\) seconds of latency, B bytes per second of each card in each direction, U of each
rack's uplink. A message of S bytes takes \(\alpha + S/B\). Sources: Thakur, Rabenseifner and Gropp 2005, "Optimization of
Collective Communication Operations in MPICH", sections 4 and 5; Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations". `docs/costs.md` shows them, a test holds each against the simulator.

    >>> round(all_reduce("ring", 4, 1e6, 1e-4, 1e8), 6)  # 2 * 3 * (1e-4 + 1e6 / 4 / 1e8)
    0.0156
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

from firesteel.sim.cluster import Algorithm

_LOOK = 40  # bytes of the sum at a point of a line search: loss, weight, slope, and what every sum carries


def _rounds(n: int) -> int:
    return max(n - 1, 0).bit_length()  # ceil(log2 n)


def all_reduce(algorithm: Algorithm, n: int, nbytes: float, latency: float, bandwidth: float) -> float:
    r"""Seconds of an all-reduce.

    Ring: \(2(n-1)(\alpha + S/(nB))\). Tree (reduce to one, then broadcast): \(2\lceil\log_2 n\rceil(\alpha + S/B)\).
    Recursive halving and doubling: \(2\log_2 p\,\alpha + 2\frac{p-1}{p}S/B\) for p the largest power of two up to n, and
    \(2(\alpha + S/B)\) more where n is none.
    """
    if n == 1:
        return 0.0
    if algorithm == "ring":
        return 2 * (n - 1) * (latency + nbytes / n / bandwidth)
    if algorithm == "tree":
        return 2 * _rounds(n) * (latency + nbytes / bandwidth)
    p = 1 << (n.bit_length() - 1)
    inner = 2 * _rounds(p) * latency + 2 * (p - 1) / p * nbytes / bandwidth
    return inner if p == n else inner + 2 * (latency + nbytes / bandwidth)


def all_gather(n: int, nbytes: float, latency: float, bandwidth: float) -> float:
    r"""Seconds of a ring all-gather of S bytes from each: \((n-1)(\alpha + S/B)\)."""
    return (n - 1) * (latency + nbytes / bandwidth)


def reduce_scatter(n: int, nbytes: float, latency: float, bandwidth: float) -> float:
    r"""Seconds of a reduce-scatter of S bytes by n - 1 messages of S/n, all posted at once: \(\alpha + \frac{n-1}{n}S/B\)."""
    return 0.0 if n == 1 else latency + (n - 1) / n * nbytes / bandwidth


def broadcast(n: int, nbytes: float, latency: float, bandwidth: float) -> float:
    r"""Seconds of a binomial tree: \(\lceil\log_2 n\rceil(\alpha + S/B)\)."""
    return _rounds(n) * (latency + nbytes / bandwidth)


def uplink(bandwidth: float, hosts: int, oversubscription: float) -> float:
    r"""Bytes per second that a rack of h hosts sends to the others, and as many that it receives: \(U = hB/o\).

    Where a message crosses it, B in `exchange` and `busiest_server` is the smaller one of B and U.
    """
    return bandwidth * hosts / oversubscription


def crossing(workers: int, nbytes: float, uplink: float) -> float:
    r"""Seconds in which N workers outside of a rack each send S bytes into it, to whatever servers there: \(NS/U\)."""
    return workers * nbytes / uplink


def exchange(nbytes: float, latency: float, bandwidth: float, merge_bandwidth: float, message_seconds: float) -> float:
    r"""Seconds of a push and a pull at an idle server: \(2(\alpha + S/B) + S/M + m\), M the merge's bytes per second."""
    return 2 * (latency + nbytes / bandwidth) + nbytes / merge_bandwidth + message_seconds


def busiest_server(workers: int, nbytes: float, bandwidth: float, merge_bandwidth: float, message_seconds: float) -> float:
    r"""Seconds in which one server with a card of its own serves each of N workers once: \(N \max(S/B, S/M + m)\).

    Below this no worker can come round, however fast it computes: N windows in less saturate the server.
    """
    return workers * max(nbytes / bandwidth, nbytes / merge_bandwidth + message_seconds)


def data_parallel(weights: int, rows: int, n: int, flops: float, latency: float, seconds_per_float: float) -> float:
    r"""Seconds of a step on n workers that share a batch of B rows: \(6|W|B/(nF) + 2\beta|W|(n-1)/n + 2(n-1)\alpha\)."""
    return 6 * weights * rows / (n * flops) + 2 * seconds_per_float * weights * (n - 1) / n + 2 * (n - 1) * latency


def model_parallel(widths: tuple[int, ...], rows: int, n: int, flops: float, latency: float, seconds_per_float: float) -> float:
    r"""Seconds of a step on n workers that share every layer of a fully connected network of widths \(n_0 \ldots n_L\).

    \(6|W|B/(nF) + \beta\frac{n-1}{n}B(\sum_{l\ge1} n_l + \sum_{l\ge2} n_{l-1}) + (n-1)(2L-1)\alpha\): an all-gather of every
    layer's outputs forward, a reduce-scatter of every hidden layer's gradients backward.
    """
    layers = len(widths) - 1
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    sent = rows * (sum(widths[1:]) + sum(widths[1:-1]))
    wire = seconds_per_float * (n - 1) / n * sent + (n - 1) * (2 * layers - 1) * latency
    return 6 * weights * rows / (n * flops) + wire


# ---- where an optimizer's state lives --------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Step:
    """What a step costs beside its gradients: passes over rows are not in it."""

    seconds: float
    """On the wire."""
    rounds: int
    """Collectives; a reduce by messages is none."""
    sent_bytes: float
    """By each worker, or the busiest one."""
    memory_bytes: float
    """Of the worker that holds most: parameters, gradient, state and what the program holds beside them."""
    multiply_adds: float
    """With the state, of the worker that has most; what is done with whole vectors in every form is left out."""


def vector_free_lbfgs(
    algorithm: Algorithm, n: int, numbers: int, memory: int, latency: float, bandwidth: float, looks: int = 1, width: int = 4
) -> Step:
    r"""An iteration of L-BFGS whose history of m pairs is spread over n workers, by coordinate.

    Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce", section 3, as `VectorFreeLBFGS` does it; A is an all-reduce:
    A(40) for each look along the line, a reduce-scatter of S, A(48m + 88) for the new pair's inner products, an all-gather of
    S/n from each. Memory \((4 + (2m+5)/n)S\), multiply-adds \((8m+10)P/n\).

    Args:
        numbers: P; each has `width` bytes, S together.
        looks: points of the line search.
    """
    nbytes, pair = numbers * width, 8 * (3 * (2 * memory + 3) + 2)
    return Step(
        looks * all_reduce(algorithm, n, _LOOK, latency, bandwidth)
        + all_reduce(algorithm, n, pair, latency, bandwidth)
        + reduce_scatter(n, nbytes, latency, bandwidth)
        + all_gather(n, nbytes / n, latency, bandwidth),
        looks + 3,
        looks * all_reduce_bytes(algorithm, n, _LOOK) + all_reduce_bytes(algorithm, n, pair) + 2 * (n - 1) / n * nbytes,
        (4 + (2 * memory + 5) / n) * nbytes,
        (8 * memory + 10) * numbers / n,
    )


def central_lbfgs(
    algorithm: Algorithm, n: int, numbers: int, memory: int, latency: float, bandwidth: float, looks: int = 1, width: int = 4
) -> Step:
    r"""The same where worker 0 alone has the history and runs the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4).

    A(40) for each look, the gradient to worker 0 by a binomial tree of messages, the direction back by another, and two numbers
    with it. Memory \((2m+5)S\), multiply-adds \((4m+4)P\), all of them worker 0's. Where n is no power of two, the tree of
    messages may be a little faster.
    """
    nbytes = numbers * width
    return Step(
        looks * all_reduce(algorithm, n, _LOOK, latency, bandwidth)
        + 2 * broadcast(n, nbytes, latency, bandwidth)
        + broadcast(n, 16, latency, bandwidth),
        looks + 2,
        looks * all_reduce_bytes(algorithm, n, _LOOK) + (_rounds(n) * (nbytes + 16) if n > 1 else 0),
        (2 * memory + 5) * nbytes,
        (4 * memory + 4) * numbers,
    )


def sharded_step(
    algorithm: Algorithm,
    n: int,
    numbers: int,
    moments: int,
    latency: float,
    bandwidth: float,
    tensors: int = 0,
    memory: int = 0,
    width: int = 4,
) -> Step:
    r"""A step of an optimizer whose moments are spread over n workers (`VectorFreeAdam`: 2, `VectorFreeAdaGrad`: 1).

    A(24) for the weight, a reduce-scatter of S, an all-gather of S/n from each; memory \((3 + (3+k)/n)S\) for k moments. With a
    basis of M gradients (1 for AdaGrad) and L parameter tensors, A(8L + 16) and A(32) more, and \((M+3)S/n\) more memory.
    """
    nbytes = numbers * width
    small = [24] + ([8 * (tensors + 2), 32] if memory else [])
    return Step(
        sum(all_reduce(algorithm, n, each, latency, bandwidth) for each in small)
        + reduce_scatter(n, nbytes, latency, bandwidth)
        + all_gather(n, nbytes / n, latency, bandwidth),
        2 + len(small),
        sum(all_reduce_bytes(algorithm, n, each) for each in small) + 2 * (n - 1) / n * nbytes,
        (3 + (3 + moments + (memory + 3 if memory else 0)) / n) * nbytes,
        (3 * moments + memory) * numbers / n,
    )


# ---- bytes ---------------------------------------------------------------------------------------------------------------


def all_reduce_bytes(algorithm: Algorithm, n: int, nbytes: int) -> int:
    """Bytes that a worker sends in an all-reduce; for a tree and for a number that is no power of two, the busiest one."""
    if n == 1:
        return 0
    if algorithm == "ring":
        return 2 * (n - 1) * nbytes // n
    if algorithm == "tree":
        return _rounds(n) * nbytes
    p = 1 << (n.bit_length() - 1)
    return 2 * (p - 1) * nbytes // p + (0 if p == n else nbytes)


def utilisation(compute_seconds: float, wait_seconds: float) -> float:
    """The share of a step's time that is not waiting, 0 .. 1."""
    whole = compute_seconds + wait_seconds
    return compute_seconds / whole if whole and math.isfinite(whole) else 0.0
