"""A pipeline learns what one process learns, by either schedule, in any number of stages and micro-batches."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from crew import Chained, adam, alone, batches, joined, program, sgd, together
from gangs import gang
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from firesteel import SGD, Grid, Local, Pipeline, Simulated, datasets, models, train
from firesteel.errors import UsageError
from firesteel.parts.balance import balanced
from firesteel.parts.measuring import measured
from firesteel.parts.network import network
from firesteel.sim.cluster import Cluster, Compute, Network


def mlp() -> nn.Module:
    return models.MLP(12, 16, 15, 14, 7, dropout=0.3)


def recurrent() -> nn.Module:
    """Dropout of states, which lie in memory by steps and not by rows, and of whole channels."""
    layers = [nn.Linear(5, 6), nn.LSTM(6, 9, batch_first=True), nn.Dropout(0.2), nn.Linear(9, 8), nn.Dropout1d(0.4)]
    return Chained(*layers, nn.Flatten(), nn.Linear(48, 4))


NETWORKS = {
    "mlp": (mlp, {"rows": 13, "shape": (12,), "classes": 7}, 20),
    "weighted": (mlp, {"rows": 13, "shape": (3, 4), "classes": 7, "weights": True}, 20),
    "lenet": (models.LeNet, {"rows": 9, "shape": (784,), "classes": 10}, 3),
    "vgg": (lambda: models.VGG(11, 0.125, norm="group", dropout=0.3), {"rows": 6, "shape": (3, 32, 32), "classes": 10}, 2),
    "rnn": (lambda: models.RNNClassifier(5, 9, 4, 2), {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True}, 8),
    "lstm": (lambda: models.LSTMClassifier(5, 9, 4, 2), {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True}, 8),
    "dropout of states": (recurrent, {"rows": 10, "shape": (6, 5), "classes": 4}, 8),
    "text": (lambda: models.CharLSTM(11, 9), {"rows": 10, "shape": (6,), "classes": 11, "tokens": 11, "target": (6,)}, 8),
}


@functools.cache
def expected(name: str, optimizer, clip: float | None):
    build, data, steps = NETWORKS[name]
    return alone(build, batches(steps, **data), optimizer, clip)


def counts(rows: int, workers: int) -> list[int]:
    """Uneven, and the third of three or more has none."""
    found = [rows // workers] * workers
    found[0] += rows - sum(found)
    if workers > 2:
        found[1], found[2] = found[1] + found[2], 0
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_learns_what_one_process_learns(name, stages):
    build, data, steps = NETWORKS[name]
    with_parameters = sum(any(True for _ in layer.parameters(recurse=False)) for layer in build().modules())
    if stages > with_parameters:
        with pytest.raises(UsageError, match=f"each needs a layer with parameters, and this network has {with_parameters} of"):
            _ = together(build, batches(1, **data), sgd, [2] * stages, Pipeline().part)
        return
    steps_of_rows, rows = batches(steps, **data), counts(data["rows"], stages)

    def trained(schedule, micro, optimizer, clip=None):
        return together(build, steps_of_rows, optimizer, rows, Pipeline(schedule=schedule, micro_batches=micro).part, clip)

    clipped = trained("1f1b", 3, sgd, 0.5)
    assert clipped.apart(expected(name, sgd, 0.5)) < 1e-10
    assert clipped.apart(trained("gpipe", 3, sgd, 0.5)) == 0.0
    assert trained("gpipe", 1, sgd).apart(expected(name, sgd, None)) < 1e-10
    assert trained("1f1b", 8, adam).apart(expected(name, adam, None)) < 1e-8


def test_single_precision():
    data = batches(20, 13, (12,), 7, dtype=torch.float32)
    found = together(mlp, data, sgd, [4, 9], Pipeline(micro_batches=5).part)
    assert found.apart(alone(mlp, data, sgd)) < 1e-5


def test_each_worker_pads_its_sequences_to_its_own_longest():
    data = batches(3, 9, (6, 5), 4, lengths=True)
    for batch in data:
        batch.inputs[1][:4].clamp_(max=2)
    whole = alone(NETWORKS["lstm"][0], data, sgd)
    short = [replace(b, inputs=(b.inputs[0][:, :2], b.inputs[1])) for b in data]

    class Shorter:
        """Batches of which the first four rows come with two steps."""

        def __init__(self, full, cut) -> None:
            self.inputs, self.weights = full.inputs, full.weights
            self.full, self.short = full, cut

        def cut(self, start, stop):
            return (self.short if stop == 4 else self.full).cut(start, stop)

    mixed = [Shorter(full, cut) for full, cut in zip(data, short, strict=True)]
    found = together(NETWORKS["lstm"][0], mixed, sgd, [4, 5], Pipeline(micro_batches=4).part)
    assert found.apart(whole) < 1e-10


class Block(nn.Sequential):
    """Works in place on what it gets; one layer, not a chain of them."""


@pytest.mark.parametrize(
    "begin",
    [[nn.ReLU(inplace=True)], [nn.Flatten(), nn.ReLU(inplace=True)], [Block(nn.ReLU(inplace=True), nn.Linear(16, 16))]],
    ids=["at once", "a view", "inside"],
)
def test_a_stage_may_begin_in_place(begin):
    def build():
        return nn.Sequential(nn.Linear(12, 16), *copy.deepcopy(begin), nn.Linear(16, 7))

    data = batches(3, 13, (12,), 7)
    found = together(build, data, sgd, [6, 7], Pipeline(cuts=(1,), micro_batches=3).part)
    assert found.apart(alone(build, data, sgd)) < 1e-10


def test_rows_of_no_weight():
    data = [replace(b, weights=b.weights * (torch.arange(12) % 6 < 3)) for b in batches(5, 12, (12,), 7, weights=True)]
    data = [replace(b, weight=float(b.weights.sum())) for b in data]
    found = together(mlp, data, sgd, [6, 6], Pipeline(micro_batches=4).part)  # two micro-batches weigh nothing
    assert found.apart(alone(mlp, data, sgd)) < 1e-10


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "micro"), [(2, 3), (3, 4), (4, 8), (4, 2)])
def test_bubble(schedule, stages, micro):
    """Of equal stages and without latency, a step takes (m + S - 1) / m of what it would if no stage waited."""

    def build():
        return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(stages)))

    at_once = Network(latency_seconds=0.0, local_latency_seconds=0.0, bandwidth=1e30, local_bandwidth=1e30)
    cluster = Cluster(workers=stages, compute=Compute(row_seconds=1e-3), network=at_once)
    rows = 4 * micro
    data = batches(1, rows, (8,), 8)
    part = Pipeline(schedule=schedule, micro_batches=micro).part
    found = together(build, data, sgd, counts(rows, stages), part, cluster=cluster)
    ideal = rows * 1e-3 / stages
    assert found.seconds == pytest.approx(ideal * (micro + stages - 1) / micro, rel=1e-12)


def test_bytes():
    """As the closed form in `Stage` says."""
    sizes, rows = (12, 16, 15, 7), [4, 5, 3]
    data = batches(2, 12, (12,), 7, weights=True)
    found = together(lambda: models.MLP(*sizes), data, sgd, rows, Pipeline(cuts=(2, 4)).part)
    batch, x, y = 12, 12 * 8, 8 + 4
    expected = [
        24 * 2 + rows[0] * y + batch * 16 * 8,
        24 * 2 + rows[1] * (x + y) + batch * (16 + 15) * 8,
        24 * 2 + rows[2] * x + batch * 15 * 8 + 8 * 2,
    ]
    assert found.sent == [len(data) * each for each in expected]


class Watched(nn.Module):
    """Hands on what it gets, and counts the graphs that wait for their backward pass."""

    most = waiting = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.clone()
        Watched.waiting += 1
        Watched.most = max(Watched.most, Watched.waiting)
        out = x.clone()
        out.register_hook(lambda grad: setattr(Watched, "waiting", Watched.waiting - 1))
        return out


@pytest.mark.parametrize(("schedule", "alive"), [("gpipe", [8, 8, 8]), ("1f1b", [3, 2, 1])])
@pytest.mark.parametrize("stage", range(3))
def test_graphs_alive(schedule, alive, stage):
    Watched.most = Watched.waiting = 0

    def build():
        pairs = [[nn.Linear(4, 4), Watched() if n == stage else nn.Identity()] for n in range(3)]
        return nn.Sequential(*(layer for pair in pairs for layer in pair))

    part = Pipeline(schedule=schedule, micro_batches=8, cuts=(2, 4)).part
    _ = together(build, batches(1, 16, (4,), 4), sgd, [6, 5, 5], part)
    assert (Watched.most, Watched.waiting) == (alive[stage], 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8), st.integers(1, 4))
def test_balance(layers, stages):
    costs, trained = [float(c) for c, _ in layers], [t for _, t in layers]
    if sum(trained) < stages:
        return

    def dearest(cuts):
        pieces = list(pairwise((0, *cuts, len(costs))))
        return max(sum(costs[a:b]) for a, b in pieces) if all(any(trained[a:b]) for a, b in pieces) else math.inf

    ways = [dearest(cuts) for cuts in combinations(range(1, len(costs)), stages - 1)]
    assert dearest(balanced(costs, trained, stages)) == min(ways) < math.inf


def test_measured_layers():
    small, large = nn.Linear(8, 8), nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 2))
    chain = network(
        nn.Sequential(small, nn.ReLU(inplace=True), nn.Linear(8, 1024), nn.Linear(1024, 1024)).to("meta"), x(8), "it"
    )
    before = torch.get_rng_state()
    seconds = measured(chain)
    assert len(seconds) == 4 and min(seconds) > 0 and seconds.index(max(seconds)) == 3
    assert len(measured(network(large.to("meta"), (torch.zeros(2, 3, dtype=torch.int64),), "it"))) == 4
    assert torch.equal(before, torch.get_rng_state())
    slow_first = replace(chain, costs=(5.0, 1.0, 1.0, 1.0))
    assert Pipeline().part(slow_first, nothing(8), 0, 2).cuts == (1,)
    assert Pipeline().part(chain, nothing(8), 0, 2).cuts == (3,)
    assert Grid(data=1, model=2, within=Pipeline()).measures_layers
    assert not Grid(data=1, model=2, within=Pipeline(cuts=(1,))).measures_layers


def x(*shape: int) -> tuple[Tensor, ...]:
    return (torch.zeros(2, *shape),)


def nothing(*shape: int):
    return batches(1, 2, shape, 2, dtype=torch.float32)[0].cut(0, 0)


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_real_processes(schedule):
    """Activations of two megabytes: sockets do not take them before somebody receives."""
    wide = functools.partial(models.MLP, 12, 8192, 9, 7)
    data = batches(3, 96, (12,), 7)
    part = Pipeline(schedule=schedule, micro_batches=3, cuts=(2, 4)).part

    async def run(net):
        return pickle.dumps(await program(wide, data, sgd, [40, 56, 0], part, 0.5)(net))

    found = gang(3, run, share=False)
    assert all(kind == "ok" for kind, _, _ in found.values()), found
    whole = alone(wide, data, sgd, 0.5)
    assert joined([pickle.loads(found[rank][1]) for rank in range(3)], whole.tensors).apart(whole) < 1e-10


def test_a_resumed_run_keeps_its_stages(tmp_path):
    """They depend on how long each layer took, which is another time every time."""

    build = functools.partial(models.MLP, 64, 32, 24, 10, dropout=0.2)

    def trained(on, **more):
        optimizer = SGD(lr=0.1, momentum=0.9)
        return train(build, datasets.digits(), strategy=Pipeline(), on=on, batch_size=128, optimizer=optimizer, **more)

    def costs():
        return json.loads(max(tmp_path.glob("points/*/point.json")).read_text())["costs"]

    _ = trained(Local(workers=2), epochs=1, run_dir=str(tmp_path))
    before = costs()
    resumed = trained(Local(workers=2), epochs=2, run_dir=str(tmp_path), resume=True)
    assert len(before) == 8 and min(before) > 0 and costs() == before
    straight = trained(Simulated(Cluster(workers=2)), epochs=2)
    for name, mine in resumed.model.state_dict().items():
        assert torch.equal(mine, straight.model.state_dict()[name])


def test_outputs_of_own_rows():
    net, rows = mlp().eval(), [3, 0, 6]
    batch = batches(1, 9, (12,), 7, dtype=torch.float32)[0]

    def factory(chain, empty, index, parts):
        return Pipeline(micro_batches=4).part(chain, empty, index, parts)

    async def run(worker):
        chain = network(models.MLP(12, 16, 15, 14, 7, dropout=0.3).to("meta"), batch.cut(0, 2).inputs, "it")
        part = factory(chain, batch.cut(0, 0), worker.rank, worker.size).to_empty(device="cpu").eval()
        tensors, numbers = dict(part.named_parameters()), net.state_dict()
        with torch.no_grad():
            for name, piece in part.pieces.items():
                _ = tensors[name].copy_(numbers[piece.name])
        part.bind(worker)
        own = batch.cut(sum(rows[: worker.rank]), sum(rows[: worker.rank + 1]))
        return (await part.outputs(own)).tolist()

    found = gang(3, run, share=True)
    assert all(kind == "ok" for kind, _, _ in found.values()), found
    expected = net(*batch.inputs).detach().split(rows)
    for rank in range(3):
        torch.testing.assert_close(torch.tensor(found[rank][1]).view(-1, 7), expected[rank])


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"stages": 0}, "at least one stage"),
        ({"schedule": "zb"}, "give 'gpipe' or '1f1b'"),
        ({"micro_batches": 0}, "at least one piece"),
        ({"cuts": (3, 3)}, "each greater than the one before"),
        ({"cuts": (0,)}, "each greater than the one before"),
        ({"stages": 3, "cuts": (2,)}, "3 stages have 2 cuts"),
    ],
)
def test_refused_settings(wrong, said):
    with pytest.raises(UsageError, match=said):
        _ = Pipeline(**wrong)


def test_as_many_workers_as_stages():
    with pytest.raises(UsageError, match=r"Set workers=3, or let.*Grid\(data=..., model=3, within=Pipeline"):
        Pipeline(stages=3).check(4, None, None)
    with pytest.raises(UsageError, match="has 2 stages, but there are 4 workers"):
        Pipeline(cuts=(1,)).check(4, None, None)
    Pipeline().check(4, None, None)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counting(nn.Linear):
    """Keeps count of the batches that it is trained with, in place or not."""

    count: Tensor

    def __init__(self, in_place: bool) -> None:
        super().__init__(4, 4)
        self.in_place: bool = in_place
        self.register_buffer("count", torch.zeros(2))

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.in_place:
            self.count[1] += 1
        elif self.training:
            self.count = self.count + 1
        return super().forward(input)


def test_a_layer_may_read_its_buffers():
    chain = network(nn.Sequential(nn.Linear(4, 4), Counting(True).eval(), nn.Linear(4, 2)).to("meta"), x(4), "it")
    assert Pipeline(cuts=(1,)).part(chain, nothing(4), 1, 2).pieces["layers.0.count"].name == "1.count"


@pytest.mark.parametrize(
    ("layers", "cuts", "said"),
    [
        (
            (nn.Linear(4, 4), Counting(True), nn.Linear(4, 2)),
            None,
            r"'1' \(Counting\) would change its buffer 'count' with each",
        ),
        ((nn.Linear(4, 4), Counting(False), nn.Linear(4, 2)), None, r"'1' \(Counting\) would change its buffer 'count'"),
        (
            (nn.Linear(4, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))),
            None,
            r"'1' \(ParametrizedLinear\) would change its buffer 'parametrizations.weight.0._u' with each",
        ),
        (
            (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            None,
            r"'1' \(BatchNorm1d\) would normalise.*GroupNorm.*Neuron",
        ),
        ((nn.Linear(4, 4), nn.AlphaDropout(), nn.Linear(4, 2)), None, r"'1' \(AlphaDropout\) draws random numbers inside"),
        ((nn.Linear(4, 4), Noisy(), nn.Linear(4, 2)), None, r"'1' \(Noisy\) draws random numbers inside"),
        ((nn.Linear(4, 4), nn.Dropout1d(0.5), nn.Linear(4, 2)), None, r"'1' \(Dropout1d\) draws"),  # it takes rows for channels
        ((nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (3,), "numbered 0 .. 2"),
        (
            (nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()),
            (2,),
            r"stage 1 would have layers 2 .. 2, '2' \(ReLU\) first.*are 0, 1",
        ),
        ((nn.Linear(4, 4), nn.ReLU()), None, "this network has 1 of those. Take 1 workers at most"),
    ],
)
def test_refused_networks(layers, cuts, said):
    chain = network(nn.Sequential(*layers).to("meta"), x(4), "it")
    with pytest.raises(UsageError, match=said):
        _ = Pipeline(cuts=cuts).part(chain, nothing(4), 0, 2)


def test_dropout_inside_of_an_lstm_is_refused_by_name():
    chain = network(models.LSTMClassifier(5, 9, 4, 2, dropout=0.1).to("meta"), x(6, 5), "it")
    with pytest.raises(UsageError, match=r"'cells' \(LSTM\) draws random numbers inside. Stack layers of one each"):
        _ = Pipeline().part(chain, nothing(6, 5), 0, 2)
