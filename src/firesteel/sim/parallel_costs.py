r"""What workers who share a network in parts send in a step, meeting by meeting, to the byte.

Symbols: n workers; B rows of all of them, b of who has most; w bytes of a number; layer l has \(n_l\) units, of which a worker
has \(u_l = \lceil n_l/n \rceil\) at most: all shares that are gathered or scattered are padded to it. A gather of S bytes from
each is \((n-1)S\) sent, a scatter of S bytes \(\frac{n-1}{n}S\), a sum of S bytes \(2\frac{n-1}{n}(S + 2w)\) by a ring: two
numbers go with every sum, its weight and the wish to stop. `costs` has their seconds.

Sources: Shrivastava, Chaudhury and Jayadeva 2017, arXiv 1708.05840, in our reading, for splitting by units; Shoeybi et al.
2019, "Megatron-LM", arXiv 1909.08053, section 3, for pairs of layers; Krizhevsky 2014, "One weird trick for parallelizing
convolutional neural networks", arXiv 1404.5997, for convolutions in the other way.

Of what a worker computes, all rows count with its share: where shares are equal, a step of B rows takes \(t_s + B t_r/n\) and
its meetings, \(t_s\) the seconds of a step and \(t_r\) those of a row.

    >>> step = fully_connected((784, 512, 512, 10), rows=(32, 32))
    >>> sum(each.sent_bytes() for each in step), len(step)
    (234272, 6)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from firesteel.sim import costs
from firesteel.sim.cluster import Algorithm

Weights = Literal["alternate", "rows"]
Units = int | tuple[int, int, int]
"""A layer's units; of a convolution its channels, with the places of each that it computes and those that the next layer
takes, after pooling. Of a layer that runs at every step of T: (units, T, T)."""

_NOTICE = 24  # bytes: rows to come, their weight, steps of the longest sequence


@final
@dataclass(frozen=True)
class Meeting:
    """One collective of a step."""

    verb: Literal["all_gather", "reduce_scatter", "all_reduce"]
    workers: int
    nbytes: int
    """Of the tensor that each worker brings."""

    def sent_bytes(self, algorithm: Algorithm = "ring") -> int:
        """By each worker; in an all-reduce by the busiest one."""
        if self.verb == "all_reduce":
            return costs.all_reduce_bytes(algorithm, self.workers, self.nbytes)
        whole = self.nbytes * self.workers if self.verb == "all_gather" else self.nbytes
        return whole * (self.workers - 1) // self.workers

    def seconds(self, latency: float, bandwidth: float, algorithm: Algorithm = "ring") -> float:
        if self.verb == "all_reduce":
            return costs.all_reduce(algorithm, self.workers, self.nbytes, latency, bandwidth)
        form = costs.all_gather if self.verb == "all_gather" else costs.reduce_scatter
        return form(self.workers, self.nbytes, latency, bandwidth)


def added(workers: int, numbers: int, width: int = 4) -> Meeting:
    """A sum of everyone's numbers, at everyone. With the numbers of a part, over the workers who have the same part, it is what
    `SyncSGD` adds to a step of a `Grid`."""
    return Meeting("all_reduce", workers, (numbers + 2) * width)


def handed_on(workers: int, units: int, each: int, width: int = 4) -> list[Meeting]:
    r"""Units with so many numbers of each, gathered forward and their gradients scattered back: \(u\) units from each."""
    share = -(-units // workers) * each * width
    return [Meeting("all_gather", workers, share), Meeting("reduce_scatter", workers, workers * share)]


def begun(rows: Sequence[int], row_bytes: int, below: int = 0, width: int = 4) -> list[Meeting]:
    r"""How a step begins: a gather of notices, 24 bytes, and one of everyone's rows, \(b\) times those of a row.

    Args:
        rows: of each worker.
        below: numbers of layers that every worker has whole and runs for its own rows, as convolutions with `conv="data"`:
            then their features are what is gathered, scattered back are the features' gradients, and theirs are added up.
    """
    workers, gathered = len(rows), max(rows) * row_bytes
    found = [Meeting("all_gather", workers, _NOTICE), Meeting("all_gather", workers, gathered)]
    return [*found, Meeting("reduce_scatter", workers, workers * gathered), added(workers, below, width)] if below else found


def split_layers(
    layers: Sequence[Units], workers: int, batch: int, weights: Weights = "alternate", width: int = 4
) -> list[Meeting]:
    r"""Between layers that are split by units.

    "rows": of each layer but the last, a gather of \(u_l B w\) bytes forward and a scatter of \(n u_l B w\) backward.
    "alternate": pairs, counted from the end; the first layer of a pair hands nothing on, of the second a sum of \(n_l B w\)
    bytes forward, and one more backward unless it is the last. A first layer without a partner hands on as in "rows".

    Args:
        layers: from the first that is split to the outputs.
        batch: rows of all workers.
    """
    full = [each if isinstance(each, tuple) else (each, 1, 1) for each in layers]
    found: list[Meeting] = []
    for number, (units, _, taken) in enumerate(full[:-1]):
        after = len(full) - 1 - number
        if weights == "alternate" and after % 2 == 1:
            outputs, made, _ = full[number + 1]
            found += [added(workers, outputs * made * batch, width)] * (1 if after == 1 else 2)
        elif weights == "rows" or number == 0:
            found += handed_on(workers, units, taken * batch, width)
    return found


def ended(rows: Sequence[int], split: bool, places: int = 1, width: int = 4) -> list[Meeting]:
    """Cross-entropy: a gather of everyone's targets, 8 bytes each; where classes are split, one of 3 numbers for each row.

    Args:
        places: targets of a row.
    """
    workers = len(rows)
    found = [Meeting("all_gather", workers, max(rows) * places * 8)]
    return [*found, Meeting("all_gather", workers, 3 * sum(rows) * places * width)] if split else found


def fully_connected(
    widths: Sequence[int], rows: Sequence[int], weights: Weights = "alternate", below: int = 0, width: int = 4
) -> list[Meeting]:
    r"""A step of fully connected layers of widths \(n_0 \ldots n_L\): `begun`, `split_layers`, `ended`.

    For even shares of "rows" a worker sends \(\frac{n-1}{n}Bw(n_0 + 2\sum_{l=1}^{L-1} n_l)\), and
    \((n-1)(24 + 8b + 3Bw)\) besides. That is \(n_0\) for the rows, which begin at their owners, and 3n numbers in place of
    \(n_L\), in the cost analysis that `costs.model_parallel` has.

    Args:
        below: numbers of convolutions before, with `conv="data"`; \(n_0\) is then the number of their features.
    """
    workers = len(rows)
    return [
        *begun(rows, widths[0] * width, below, width),
        *split_layers(widths[1:], workers, sum(rows), weights, width),
        *ended(rows, split=weights == "rows" or len(widths) == 2, width=width),
    ]


def recurrent(hidden: int, steps: int, workers: int, batch: int, layers: int = 1, width: int = 4) -> list[Meeting]:
    r"""Within an LSTM or RNN: at each of T steps but the last, a gather of \(uBw\) bytes forward and a scatter of \(nuBw\)
    backward; in a layer that another one follows, at the last step too."""
    one = handed_on(workers, hidden, batch, width)
    return one * (layers * steps - 1)
