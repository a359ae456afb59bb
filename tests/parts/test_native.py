"""PyTorch's own sharding: what it learns is what one process with everyone's rows learns."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from natives import STEPS, Case, Recurrent, Residual, Sequences, Tied, Trained, alone, mlp, together
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import firesteel
from firesteel import Adam, Cluster, FullyShard, Grid, Local, Simulated, Spark, SyncSGD, TensorParallel, UsageError
from firesteel.net.mesh import mesh_of
from firesteel.trace import Trace

MLP = TensorParallel({"layers.0": "colwise", "layers.2": "rowwise"})
BLOCKS = TensorParallel({"blocks.*.up": "colwise", "blocks.*.down": "rowwise"})
HEAD = TensorParallel({"head.1": "colwise", "head.3": "rowwise", "head.5": "colwise_rep"})
SEQUENCES = TensorParallel(
    {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": "sequence",
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": "rowwise",
    }
)
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
    "parallel sequences": Case(Sequences, SEQUENCES, (20, 23), (4,), tokens=9, clip_norm=0.1),
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


# ---- runs from end to end --------------------------------------------------------------------------------------------


def rows(n: int, width: int = 6):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=draw)
    return x.numpy(), (x[:, 0] > x[:, 1]).long().numpy()


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))


def fit(strategy, workers: int, **settings):
    chosen = {"on": Local(workers=workers), "batch_size": 16, "max_steps": 12, "seed": 3, "progress": "none", **settings}
    return firesteel.train(noisy, rows(101), strategy=strategy, optimizer=Adam(lr=1e-2), **chosen)


@pytest.mark.parametrize(
    ("strategy", "workers"), [(SMALL, 2), (Grid(data=2, model=2, within=SMALL), 4)], ids=["alone", "in a grid"]
)
def test_sharding_is_synchronous_training(strategy, workers):
    """Masks, running statistics and scores too."""
    got, expected = fit(strategy, workers), fit(SyncSGD(), workers)
    for name, x in expected.model.state_dict().items():
        torch.testing.assert_close(got.model.state_dict()[name], x, atol=1e-5, rtol=1e-5)
    assert got.metrics["validation_loss"] == pytest.approx(expected.metrics["validation_loss"], abs=1e-5)


@pytest.mark.parametrize("strategy", [SMALL, TensorParallel({"0": "colwise_rep", "4": "rowwise_rep"})], ids=["sharded", "cut"])
def test_a_resumed_run_is_the_run(strategy, tmp_path):
    whole = fit(strategy, 2)
    _ = fit(strategy, 2, max_steps=7, run_dir=tmp_path)
    resumed = fit(strategy, 2, resume=tmp_path)
    for name, x in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], x), name


@pytest.mark.spark
def test_runs_on_spark_one_after_the_other(spark):
    """Spark's Python workers are used again."""
    expected = fit(SyncSGD(), 2).model.state_dict()
    _ = fit(TensorParallel({"0": "colwise_rep", "4": "rowwise_rep"}), 2, on=Spark(workers=2, session=spark), max_steps=2)
    got = fit(SMALL, 2, on=Spark(workers=2, session=spark)).model.state_dict()
    assert all(torch.allclose(got[name], x, atol=1e-5) for name, x in expected.items())


def test_bytes_are_those_of_the_meetings():
    """Of two workers each sends half of what it gathers, twice, and for gradients as much as an all-reduce would."""
    case = Case(mlp, FullyShard(smallest=1), double=False)  # all its dimensions are even
    model_bytes = 4 * sum(p.numel() for p in mlp().parameters())
    of_rows = 24  # float64: rows, weight, steps
    step, outputs = (0.5 + 0.5 + 1) * model_bytes + of_rows, 0.5 * model_bytes + of_rows
    assert together({"one": case}, 2)["one"].sent == STEPS * step + outputs


def test_a_plan_in_a_run():
    run = fit(TensorParallel({"0": "colwise_rep", "4": "rowwise_rep"}), 2)
    assert run.metrics["train_loss"] < 0.8
    assert bool(torch.isfinite(run.model(torch.zeros(2, 6))).all())


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(strategy, model=mlp, width: int = 12, **settings):
    chosen = {"on": Local(workers=3), "progress": "none", "max_steps": 2, "batch_size": 16, **settings}
    with pytest.raises(UsageError) as said:
        _ = firesteel.train(model, rows(90, width), strategy=strategy, **chosen)
    return str(said.value)


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        return self.out(x) * self.scale


@pytest.mark.parametrize(
    ("strategy", "model", "said"),
    [
        (TensorParallel(), mlp, "needs a plan"),
        (
            TensorParallel({"layer.0": "colwise"}),
            mlp,
            r"names 'layer.0', but the model has no such module. Did you mean 'layers.0'",
        ),
        (TensorParallel({"layers.0": "colwise"}), mlp, "16 outputs, of which 3 workers cannot have equally many"),
        (TensorParallel({"layers.2": "rowwise"}), mlp, "16 inputs"),
        (TensorParallel({"layers.1": "colwise"}), mlp, "only support nn.Linear and nn.Embedding"),
        (TensorParallel({"embed": "rowwise"}), Tied, "which are one"),
        (TensorParallel({"embed": "rowwise"}), Sequences, '"rowwise_rep"'),
        (FullyShard(), Number, "'scale' is a single number"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_starts(strategy, model, said):
    with pytest.raises(UsageError, match=said):
        _ = strategy.check(3, None, model())


@pytest.mark.parametrize("plan", [{"0": "colwize"}, {"0": 3}, [("0", "colwise")]], ids=str)
def test_styles_that_are_none(plan):
    with pytest.raises(UsageError, match="style"):
        _ = TensorParallel(plan)


@pytest.mark.parametrize("strategy", [SMALL, MLP, Grid(data=1, model=3, within=SMALL)], ids=["sharded", "parallel", "grid"])
def test_neither_simulated_nor_planned(strategy):
    assert "virtual time" in refused(strategy, mlp if strategy is not MLP else wide, on=Simulated(Cluster(3)))
    with pytest.raises(UsageError, match="leave it out"):
        _ = firesteel.plan(mlp, Cluster(3), 90, [strategy], [3], optimizer=Adam())


def wide() -> nn.Module:
    return firesteel.models.MLP(12, 6, 4)


def sloped() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.PReLU(), nn.Linear(6, 4))


def test_whole_parameters_between_cut_layers_are_found_out():
    said = refused(TensorParallel({"0": "colwise", "2": "rowwise"}), sloped)
    assert "leaves '1.weight' whole" in said


def test_what_does_not_take_its_own_units_is_told():
    said = refused(TensorParallel({"0": "colwise"}), sloped)
    assert "must take them as they are" in said


def test_a_default_group_of_the_users_own_is_left_alone():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match="one already"), mesh_of(lambda *_: None, None, 0, 1, Trace(0)):
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
