"""PyTorch's own sharding: what it learns is what one process with everyone's rows learns."""

from __future__ import annotations

import pytest
import torch
from natives import Case, Recurrent, Residual, Tied, Trained, alone, mlp, together

import firesteel
from firesteel import Adam, FullyShard, TensorParallel

MLP = TensorParallel({"layers.0": "colwise", "layers.2": "rowwise"})
BLOCKS = TensorParallel({"blocks.*.up": "colwise", "blocks.*.down": "rowwise"})
HEAD = TensorParallel({"head.1": "colwise", "head.3": "rowwise", "head.5": "colwise_rep"})
SMALL = FullyShard(smallest=50)

TWO = {
    "sharded mlp": Case(mlp, FullyShard()),
    "sharded mlp by layers": Case(mlp, SMALL, clip_norm=0.1),
    "sharded mlp, kept after forward": Case(mlp, FullyShard(smallest=50, reshard=False), (40, 23), weighted=True),
    "sharded mlp in float32": Case(mlp, SMALL, (40, 23), double=False),
    "sharded mlp, Adam": Case(lambda: mlp("relu"), SMALL, (33, 40), optimizer=Adam(lr=1e-2)),
    "sharded lenet": Case(firesteel.models.LeNet, SMALL, (16, 9), (1, 28, 28)),
    "sharded branches": Case(Residual, SMALL, (40, 1)),
    "sharded tied": Case(Tied, FullyShard(smallest=1), (20, 31), (5,), tokens=9),
    "sharded recurrent": Case(Recurrent, FullyShard(smallest=1), (20, 9), (3,), sequences=True),
    "parallel mlp": Case(mlp, MLP),
    "parallel mlp, clipped": Case(mlp, MLP, (40, 23), clip_norm=0.1, weighted=True),
    "parallel mlp in float32": Case(mlp, MLP, (40, 23), double=False),
    "parallel mlp, Adam": Case(lambda: mlp("relu"), MLP, (0, 40), optimizer=Adam(lr=1e-2)),
    "parallel lenet": Case(firesteel.models.LeNet, HEAD, (16, 9), (1, 28, 28)),
    "parallel branches": Case(Residual, BLOCKS, (40, 1), weighted=True),
}
THREE = {
    "sharded, a worker without rows": Case(Residual, SMALL, (20, 0, 9), clip_norm=0.1),
    "sharded recurrent, a worker without rows": Case(Recurrent, SMALL, (0, 20, 9), (3,), sequences=True, weighted=True),
    "parallel, a worker without rows": Case(
        lambda: firesteel.models.MLP(12, 7, 7, 4, activation="tanh"),
        TensorParallel({"layers.0": "colwise_rep", "layers.2": "rowwise_rep"}),
        (20, 0, 9),
    ),
}


@pytest.fixture(scope="module")
def trained():
    found: dict[str, Trained] = {}

    def of(name: str) -> Trained:
        cases = TWO if name in TWO else THREE
        if name not in found:
            found.update(together(cases, 2 if name in TWO else 3))
        return found[name]

    return of


@pytest.mark.parametrize(("name", "case"), [*TWO.items(), *THREE.items()], ids=[*TWO, *THREE])
def test_equals_one_process(trained, name, case):
    got, expected = trained(name), alone(case)
    near = {"atol": 1e-10, "rtol": 0} if case.double else {"atol": 1e-5, "rtol": 0}
    if isinstance(case.optimizer, Adam):
        near["atol"] = 1e-8
    assert got.tensors.keys() == expected.tensors.keys()
    for each, x in expected.tensors.items():
        torch.testing.assert_close(got.tensors[each], x, **near, msg=lambda m, each=each: f"{each}: {m}")
    torch.testing.assert_close(torch.tensor(got.losses), torch.tensor(expected.losses), atol=1e-5, rtol=0)
    outputs = [x for x in got.outputs if len(x)]
    for a, b in zip(outputs, expected.outputs, strict=True):
        torch.testing.assert_close(a, b, **near)
