"""MNIST without gradients, one training at a time: what `benchmarks.admm` measures and `benchmarks.admm_grid` searches."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

import firesteel
from benchmarks import report

PIXELS, CLASSES, TRAIN = 784, 10, 55_000
WORLD = firesteel.Local(workers=2, threads=1)
Rows = tuple[Tensor, Tensor]  # pixels in 0 .. 1, [n, 784], and classes, [n]


def he(*sizes: int) -> nn.Module:
    """An MLP of ReLU units with He's weights (normal, of variance 2 / fan-in) and zero biases."""
    model = firesteel.models.MLP(*sizes)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            _ = nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            _ = nn.init.zeros_(layer.bias)
    return model


def factory(hidden: tuple[int, ...]) -> Any:
    return functools.partial(he, PIXELS, *hidden, CLASSES)


def mnist(folder: str | None, rows: int = TRAIN) -> dict[str, Rows]:
    """Training rows (the first `rows` of 55,000), the 5,000 for validation and the 10,000 for testing."""
    data = firesteel.datasets.mnist(report.mnist_folder(folder))
    x, y, tested, expected = (torch.from_numpy(a) for a in (*data.train, *data.test))
    pixels = lambda images: images.view(-1, PIXELS).float() / 255  # noqa: E731
    return {
        "train": (pixels(x[:rows]), y[:rows]),
        "validation": (pixels(x[TRAIN:]), y[TRAIN:]),
        "test": (pixels(tested), expected),
    }


# ---- one training, seen after every sweep ----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Watched:
    """A full-batch strategy with steps of its own, whose worker 0 writes every published model into a file."""

    strategy: Any
    path: str

    own_steps = True
    full_batch = True

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        return self.strategy.check(workers, optimizer, module)

    async def run(self, worker: Any, net: Any) -> Tensor:
        return await self.strategy.run(worker, _Watch(net, self.path) if net.rank == 0 else net)


@final
class _Watch:
    """A net that hands everything on."""

    def __init__(self, net: Any, path: str) -> None:
        self._net: Any = net
        self._path: str = path

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._net, verb)

    def publish(self, params: Tensor, *rest: Tensor) -> None:
        with open(self._path, "ab") as file:
            _ = file.write(params.numpy().tobytes())
        self._net.publish(params, *rest)


def curves(strategy: Any, hidden: tuple[int, ...], sweeps: int, rows: dict[str, Rows], seed: int = 0) -> dict[str, Any]:
    """Loss and accuracy of every kind of rows after each sweep; the seconds of training; and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "models")
        path.touch()
        found: dict[str, Any] = {"ended": "finished", "seconds": float("nan")}
        try:
            run = firesteel.train(
                factory(hidden),
                tuple(a.numpy() for a in rows["train"]),
                strategy=Watched(strategy, str(path)),
                on=WORLD,
                epochs=sweeps,
                validation=None,
                seed=seed,
                progress="none",
            )
            found["seconds"] = run.timing["train_seconds"]
        except firesteel.Diverged:
            found["ended"] = "diverged"
        model = factory(hidden)()
        models = torch.from_numpy(np.fromfile(path, np.float32)).view(-1, sum(p.numel() for p in model.parameters()))
        for params in models:
            nn.utils.vector_to_parameters(params, model.parameters())
            for name, part in rows.items():
                loss, accuracy = scores(model, part, strategy.output)
                found.setdefault(f"{name} loss", []).append(loss)
                found.setdefault(f"{name} accuracy", []).append(accuracy)
    return found


def scores(model: nn.Module, rows: Rows, output: str) -> tuple[float, float]:
    """The mean loss of a row, as the strategy defines it for this kind of output, and the accuracy."""
    loss = right = 0.0
    for x, y in zip(*(a.split(10_000) for a in rows), strict=True):
        with torch.no_grad():
            z = model(x)
        hot = nn.functional.one_hot(y, CLASSES).float()
        loss += float(firesteel.strategies.outputs.loss(output, z, hot).sum())  # pyright: ignore[reportArgumentType]
        right += float((z.argmax(1) == y).sum())
    return loss / len(rows[1]), right / len(rows[1])


# ---- the yardstick ---------------------------------------------------------------------------------------------------


def random_features(hidden: tuple[int, ...], rows: dict[str, Rows], seed: int = 0) -> dict[str, float]:
    """Accuracies of least squares from the last hidden layer of an untrained network (from the pixels, without one)."""
    torch.manual_seed(seed)
    below = nn.Sequential(*list(factory(hidden)().layers)[:-1])
    square = cross = torch.zeros(())
    for x, y in zip(*(a.split(10_000) for a in rows["train"]), strict=True):
        a = _features(below, x)
        square, cross = square + a.T @ a, cross + a.T @ nn.functional.one_hot(y, CLASSES).double()
    ridge = 1e-6 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    weights = torch.linalg.solve(square + ridge, cross)
    return {name: float(((_features(below, x) @ weights).argmax(1) == y).float().mean()) for name, (x, y) in rows.items()}


def _features(below: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([below(x), torch.ones(len(x), 1)], dim=1).double()


# ---- figures that outlive a killed run -------------------------------------------------------------------------------


@final
class Kept:
    """A file of JSON lines, one for each trial that has ended."""

    def __init__(self, path: str) -> None:
        self.path: Path = Path(path)

    def read(self) -> dict[str, dict[str, Any]]:
        """What each trial, by its name, came to; a line that a kill cut short is left out."""
        found: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                found[entry["trial"]] = entry
        return found

    def add(self, trial: str, figures: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            _ = file.write(("\n" if torn else "") + json.dumps({"trial": trial, **figures}) + "\n")


def missing(kept: Kept, trials: dict[str, float]) -> Iterator[str]:
    """The trials without a line in the file, one after the other, with a word on how long the rest will take.

    `trials` has for each what it costs, in any unit.
    """
    known = kept.read()
    left = {name: cost for name, cost in trials.items() if name not in known}
    if len(left) < len(trials):
        print(f"{len(trials) - len(left)} of {len(trials)} trials are in {kept.path} already.", flush=True)
    began, spent = time.time(), 0.0
    for number, (name, cost) in enumerate(left.items(), 1):
        print(f"[{number}/{len(left)}] {name}", flush=True)
        yield name
        spent += cost
        rest = (time.time() - began) / spent * (sum(left.values()) - spent)
        if number < len(left):
            print(f"    about {rest / 60:.1f} minutes left", flush=True)


def layers(text: str) -> tuple[int, ...]:
    """Hidden layers from 300-300."""
    return tuple(int(width) for width in text.split("-"))


def dashed(hidden: tuple[int, ...]) -> str:
    """300-300 from hidden layers."""
    return "-".join(map(str, hidden))


def adds_up(hidden: tuple[int, ...]) -> int:
    """Weights of a network, which is about what a sweep costs."""
    return sum(a * b for a, b in itertools.pairwise((PIXELS, *hidden, CLASSES)))
