"""Networks in parts, from the call to the model, on real processes, in virtual time and on Spark."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from crew import Chained
from problem import SEED, Part, flat, initial, rows, weighted_loss
from torch import nn

import firesteel
from firesteel import Adam, Grid, Local, ModelAveraging, NeuronParallel, Pipeline, SyncSGD, UsageError, randomness


def noisy(width: int = 12, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, classes))


def plain(width: int = 12, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, classes))


def train(model, data, strategy, on, **settings):
    settings = {"batch_size": 16, "epochs": 3, "validation": None, "metrics": (), "seed": SEED, "progress": "none", **settings}
    settings.setdefault("optimizer", firesteel.SGD(lr=0.1, momentum=0.9))
    return firesteel.train(model, data, strategy=strategy, on=on, **settings)


def one_process(factory, data, workers, clip=None, epochs=3, w=None):
    """All workers' batches of a step as one, by a loop in plain PyTorch."""
    gang = [Part(*data, rank, workers, 16, epochs, w) for rank in range(workers)]
    module = initial(factory).train()
    randomness.train(SEED, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, gang[0].plan.total_steps + 1):
        x, y, each = (torch.cat(t) for t in zip(*(part.batch(step) for part in gang), strict=True))
        optimizer.zero_grad()
        weighted_loss(module, x, y, each).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return module


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_processes_learn_what_one_would(workers):
    data = rows(211)
    run = train(noisy, data, NeuronParallel(), Local(workers, threads=1), clip_norm=0.5)
    expected = one_process(noisy, data, workers, clip=0.5)
    torch.testing.assert_close(flat(run.model), flat(expected), rtol=0, atol=2e-6)
    for name, b in expected.named_buffers():
        torch.testing.assert_close(dict(run.model.named_buffers())[name], b, rtol=0, atol=2e-6)


def test_weights_of_rows():
    x, y = rows(150)
    w = np.random.default_rng(0).random(150).astype(np.float32)
    run = train(plain, (x, y, w), NeuronParallel(weights="rows"), Local(2, threads=1))
    torch.testing.assert_close(flat(run.model), flat(one_process(plain, (x, y), 2, w=w)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("within", [NeuronParallel(), NeuronParallel(weights="rows")], ids=repr)
def test_a_grid_is_one_big_batch(within):
    data = rows(211)
    run = train(plain, data, Grid(2, 2, within=within), Local(4, threads=1))
    torch.testing.assert_close(flat(run.model), flat(one_process(plain, data, 4)), rtol=0, atol=2e-6)


def by_type(module):
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    rest = [p for p in module.parameters() if all(p is not w for w in weights)]
    return [{"params": weights, "weight_decay": 0.3}, {"params": rest, "lr": 0.3}]


def by_name(module):
    last = [p for name, p in module.named_parameters() if name.startswith("4.")]
    return [{"params": last, "lr": 0.5}, {"params": module[0].weight}, {"params": [module[0].bias, *module[2].parameters()]}]


@pytest.mark.parametrize("groups", [by_type, by_name])
@pytest.mark.parametrize("strategy", [NeuronParallel(), firesteel.Pipeline(), Grid(1, 2)], ids=repr)
def test_an_optimizers_groups_are_those_of_the_whole_network(groups, strategy):
    settings = {"optimizer": firesteel.SGD(lr=0.1, momentum=0.9, groups=groups)}
    run = train(plain, rows(100), strategy, firesteel.Simulated(firesteel.Cluster(workers=2)), **settings)
    whole = train(plain, rows(100), SyncSGD(), firesteel.Simulated(firesteel.Cluster(workers=2)), **settings)
    torch.testing.assert_close(flat(run.model), flat(whole.model), rtol=0, atol=2e-6)


SHARDS, CUT = firesteel.FullyShard(smallest=1), firesteel.TensorParallel({"0": "colwise_rep"})


@pytest.mark.parametrize(
    "within", [NeuronParallel(), firesteel.Pipeline(), SHARDS, CUT], ids=lambda within: type(within).__name__
)
def test_replicas_count_by_the_weight_of_all_their_rows(within):
    """Rows whose weights differ much, so that workers of one replica have unequal ones."""
    x, y = rows(150)
    w = np.random.default_rng(0).random(150).astype(np.float32) ** 4
    run = train(plain, (x, y, w), Grid(2, 2, within=within), Local(4, threads=1))
    torch.testing.assert_close(flat(run.model), flat(one_process(plain, (x, y), 4, w=w)), rtol=0, atol=2e-6)


WORLDS = [
    (NeuronParallel(), 2),
    (NeuronParallel(), 3),
    (Grid(2, 2), 4),
    (Grid(2, 2, across=ModelAveraging(4)), 4),
    (Grid(3, 1, across=firesteel.SlowMo(4)), 3),
]


@pytest.mark.parametrize(("strategy", "workers"), WORLDS, ids=repr)
def test_virtual_time_learns_the_same(strategy, workers):
    settings = {"validation": 0.1, "clip_norm": 0.5, "metrics": ("accuracy",)}
    real = train(noisy, rows(190), strategy, Local(workers, threads=1), **settings)
    imagined = train(noisy, rows(190), strategy, firesteel.Simulated(firesteel.Cluster(workers=workers)), **settings)
    if workers == 2:
        assert torch.equal(flat(real.model), flat(imagined.model))
    torch.testing.assert_close(flat(real.model), flat(imagined.model), rtol=0, atol=1e-6)
    for mine, theirs in zip(real.history.to_pylist(), imagined.history.to_pylist(), strict=True):
        assert mine["samples"] == theirs["samples"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-5)
    assert real.metrics["validation_loss"] == pytest.approx(imagined.metrics["validation_loss"], rel=1e-5)


@pytest.mark.parametrize(("strategy", "workers"), [(NeuronParallel(), 2), (Grid(2, 2), 4)], ids=repr)
def test_stopped_and_resumed(tmp_path, strategy, workers):
    settings = {"epochs": 30, "validation": 0.1, "optimizer": Adam(lr=1e-3)}
    on = Local(workers, threads=1)
    whole = train(noisy, rows(210), strategy, on, **settings)
    first = train(noisy, rows(210), strategy, on, **settings, run_dir=tmp_path / "run", max_seconds=0.05)
    assert first.status == "stopped" and 0 < first.settings["steps"] < whole.settings["steps"]
    second = train(noisy, rows(210), strategy, on, **settings, run_dir=tmp_path / "run", resume=True)
    assert second.status == "finished"
    for name, x in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], x), name
    ours, theirs = second.history.to_pylist()[-1], whole.history.to_pylist()[-1]
    for name in ("samples", "bytes_sent", "validation_loss", "step"):
        assert ours[name] == theirs[name], name


def test_early_stopping_scores_the_parts_together():
    run = train(
        lambda: noisy(64, 10),
        firesteel.datasets.digits(),
        NeuronParallel(),
        Local(2, threads=1),
        optimizer=Adam(lr=1e-2),
        validation=0.2,
        metrics=("accuracy",),
        epochs=60,
        early_stopping=firesteel.EarlyStopping(patience=2),
    )
    assert run.status == "stopped early" and run.metrics["validation_accuracy"] > 0.9
    assert run.metrics["validation_loss"] == min(r["validation_loss"] for r in run.history.to_pylist())
    assert run.evaluate(firesteel.datasets.digits().test)["accuracy"] > 0.9


class Told(nn.Module):
    """Hands on what it gets, and writes down how many rows these are."""

    def __init__(self, note: str) -> None:
        super().__init__()
        self.note = note

    def forward(self, x):
        if not x.is_meta:
            with open(self.note, "a") as file:
                print(len(x), self.training, file=file)
        return x


def test_evaluating_takes_no_more_rows_at_once_than_training(tmp_path):
    note = str(tmp_path / "rows")

    def factory():
        return nn.Sequential(nn.Linear(12, 8), Told(note), nn.Linear(8, 4))

    _ = train(factory, rows(300), NeuronParallel(), Local(2, threads=1), validation=0.5, epochs=1)
    seen = [line.split() for line in (tmp_path / "rows").read_text().splitlines()]
    most = {mode: max(int(count) for count, training in seen if training == mode) for mode in ("True", "False")}
    assert most == {"True": 32, "False": 32}


def test_workers_without_rows_take_part():
    """Five rows for four workers, a batch of one each."""
    data = rows(5)
    run = train(plain, data, NeuronParallel(), Local(4, threads=1), epochs=4)
    gang = [Part(*data, rank, 4, 16, 4) for rank in range(4)]
    assert [len(part.x) for part in gang] == [2, 1, 1, 1]
    torch.testing.assert_close(flat(run.model), flat(one_process(plain, data, 4, epochs=4)), rtol=0, atol=2e-6)
    fewer = train(plain, rows(2), NeuronParallel(), Local(3, threads=1), epochs=4)
    torch.testing.assert_close(flat(fewer.model), flat(one_process(plain, rows(2), 3, epochs=4)), rtol=0, atol=2e-6)


def test_sequences_of_unequal_length():
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal((int(n), 2)).astype(np.float32) for n in rng.integers(1, 9, 300)]
    table = pa.table({"steps": [s.tolist() for s in steps], "label": [int(s[:, 0].sum() > 0) for s in steps]})
    settings = {"features": firesteel.Sequence("steps"), "optimizer": Adam(lr=1e-2), "epochs": 4}
    factory = lambda: firesteel.models.LSTMClassifier(2, 9, 3)  # noqa: E731
    split = train(factory, table, NeuronParallel(), Local(2, threads=1), **settings)
    whole = train(factory, table, SyncSGD(), Local(2, threads=1), **settings)
    torch.testing.assert_close(flat(split.model), flat(whole.model), rtol=0, atol=1e-4)


def test_the_model_is_one_like_any_other(tmp_path):
    run = train(
        lambda: firesteel.models.MLP(12, 16, 4), rows(100), NeuronParallel(), Local(2, threads=1), run_dir=tmp_path / "r"
    )
    assert run.save(tmp_path / "m") == "import"
    x = torch.randn(3, 12)
    assert torch.equal(firesteel.load(tmp_path / "m")(x), run.model(x))
    twin = copy.deepcopy(run.model).train()
    twin(x).sum().backward()
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
    assert not torch.equal(flat(twin), flat(run.model))


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.one(x) * self.two(x))


class Left(Crossed):
    def chain(self):
        return [self.one, self.out]


class Versioned(nn.Sequential):
    """With a buffer of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 8), nn.Linear(8, 4))
        self.register_buffer("version", torch.tensor(3))

    def chain(self):
        return list(self)


class Wrapping(nn.Module):
    """Wraps a layer anew each time it is asked for its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 4)

    def chain(self):
        return [self.one, nn.Tanh(), Chained(self.two)]

    def forward(self, x):
        return self.two(self.one(x).tanh())


def twice():
    norm = nn.BatchNorm1d(8, affine=False)
    return nn.Sequential(nn.Linear(12, 8), norm, nn.Linear(8, 8), norm, nn.Linear(8, 4))


def tied():
    made = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 4))
    made[2].weight = made[0].weight
    return made


def frozen():
    made = plain()
    made[0].weight.requires_grad_(False)
    return made


REFUSED = [
    (
        Crossed,
        NeuronParallel(),
        2,
        r"does not know the layers of Crossed: give an nn.Sequential, or a module with a method chain",
    ),
    (Left, NeuronParallel(), 2, r"parameter 'two.weight' belongs to none of its layers"),
    (tied, NeuronParallel(), 2, r"two layers of this network share a parameter, '0.weight'"),
    (Versioned, NeuronParallel(), 2, "buffer 'version' belongs to none of its layers"),
    (twice, NeuronParallel(), 2, "two layers of this network share a buffer, '1.running_mean'"),
    (
        Wrapping,
        Pipeline(),
        2,
        r"chain\(\) returns, Chained with 'layers.0.weight', is no module of Wrapping itself: make it once",
    ),
    (frozen, NeuronParallel(), 2, r"'0.weight' is frozen"),
    (
        lambda: nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 4)),
        NeuronParallel(),
        4,
        r"'0' \(Linear\) has 3 units.*over 4 parts",
    ),
    (lambda: nn.Sequential(nn.Linear(12, 9), nn.PReLU(), nn.Linear(9, 4)), NeuronParallel(), 2, r"layer 1, '1' \(PReLU\)"),
    (plain, NeuronParallel(parts=3), 2, r"parts=3\) on 2 workers.*workers=3.*Grid\(data=\.\.\., model=3\)"),
    (plain, Grid(2, 2), 2, r"is for 4 workers, but there are 2"),
    (noisy, NeuronParallel(local_steps=2, conv="split"), 2, None),
    (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(40, 4)),
        NeuronParallel(local_steps=2),
        2,
        r"'1.weight' is at every worker.*Set conv=\"split\"",
    ),
]


@pytest.mark.parametrize(("factory", "strategy", "workers", "says"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_starts(monkeypatch, factory, strategy, workers, says):
    if says is None:
        train(factory, rows(40), strategy, Local(workers, threads=1), epochs=1)
        return
    monkeypatch.setattr("firesteel.local.world.run", lambda *_: pytest.fail("the world was touched"))
    with pytest.raises(UsageError, match=says):
        train(factory, rows(40), strategy, Local(workers))


class Constants(nn.Module):
    """Real tensors, one kept and one made anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.linspace(-1, 1, 12)
        self.out = nn.Linear(12, 12)

    def forward(self, x):
        return self.out((x - self.mean) * torch.arange(12.0))


@pytest.mark.parametrize("strategy", [Pipeline(cuts=(1,)), firesteel.FullyShard()], ids=["stages", "shards"])
def test_tensors_that_are_neither_parameters_nor_buffers(strategy):
    def factory():
        return nn.Sequential(Constants(), nn.Linear(12, 4))

    with pytest.warns(UserWarning, match=r"\(Constants.mean is a tensor, but neither.*every worker makes all of it"):
        run = train(factory, rows(100), strategy, Local(2, threads=1), optimizer=firesteel.SGD(lr=0.01), epochs=1)
    whole = train(factory, rows(100), SyncSGD(), Local(2, threads=1), optimizer=firesteel.SGD(lr=0.01), epochs=1)
    assert torch.equal(run.model[0].mean, torch.linspace(-1, 1, 12))
    torch.testing.assert_close(flat(run.model), flat(whole.model), rtol=0, atol=2e-6)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.RNN(12, 4, batch_first=True)

    def forward(self, x):
        return self.cells(x[:, None], torch.zeros(1, len(x), 4))[0][:, -1]


def test_a_network_is_tried_without_numbers():
    with pytest.raises(UsageError, match=r'tried on the device "meta".*tensors that it makes may need device=x.device'):
        train(lambda: nn.Sequential(Stateful(), nn.Linear(4, 4)), rows(40), Pipeline(cuts=(1,)), Local(2))


def test_an_optimizer_that_looks_at_whole_tensors_is_told_of():
    with pytest.warns(UserWarning, match="Adafactor may look at a tensor as a whole"):
        settings = {"optimizer": firesteel.Optimizer(torch.optim.Adafactor), "epochs": 1}
        train(plain, rows(40), NeuronParallel(), firesteel.Simulated(firesteel.Cluster(workers=2)), **settings)


def test_parts_are_trained_on_cpus():
    with pytest.raises(UsageError, match="NeuronParallel trains on CPUs; leave device at 'auto'"):
        train(plain, rows(40), NeuronParallel(), Local(2), device="cuda")


@pytest.mark.parametrize(
    "made",
    [
        lambda: NeuronParallel(parts=0),
        lambda: NeuronParallel(local_steps=0),
        lambda: NeuronParallel(damping=0.0),
        lambda: NeuronParallel(conv="both"),
        lambda: NeuronParallel(weights="columns"),
        lambda: Grid(0, 2),
        lambda: Grid(2, 2, within=SyncSGD()),
        lambda: Grid(2, 2, across=firesteel.Downpour()),
        lambda: Grid(2, 2, across=NeuronParallel()),
        lambda: Grid(2, 2, across=firesteel.Single()),
        lambda: Grid(2, 2, across=firesteel.Ensemble()),
        lambda: Grid(2, 2, across=firesteel.VectorFreeAdam()),
        lambda: Grid(2, 2, across=firesteel.VectorFreeLBFGS()),
        lambda: Grid(2, 2, within=NeuronParallel(local_steps=2)),
    ],
)
def test_settings_that_cannot_be(made):
    with pytest.raises(UsageError):
        made()


def test_a_module_with_numbers_is_used_as_it_is_with_a_warning():
    module = initial(plain)
    with pytest.warns(UserWarning, match="every worker makes all of it"):
        run = train(module, rows(100), NeuronParallel(), Local(2, threads=1))
    torch.testing.assert_close(flat(run.model), flat(one_process(plain, rows(100), 2)), rtol=0, atol=2e-6)


@pytest.mark.spark
def test_on_spark_as_on_this_machine(spark):
    train_frame, test_frame = firesteel.datasets.digits().frame(spark)
    settings = {"optimizer": Adam(lr=5e-3), "epochs": 15, "batch_size": 32, "seed": 1, "progress": "none"}
    factory = lambda: firesteel.models.MLP(64, 32, 10)  # noqa: E731
    frame = train_frame.repartition(2)
    run = firesteel.train(factory, frame, strategy=NeuronParallel(), on=firesteel.Spark(workers=2), **settings)
    same = firesteel.train(factory, frame, strategy=SyncSGD(), on=firesteel.Spark(workers=2), **settings)
    found, expected = run.evaluate(test_frame), same.evaluate(test_frame)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.03) and found["accuracy"] > 0.9


@pytest.mark.spark
def test_a_spark_ml_model_from_parts(spark, tmp_path):
    from firesteel.ml import TorchClassificationModel, TorchClassifier

    train_frame, test_frame = firesteel.datasets.digits().frame(spark)
    estimator = TorchClassifier(
        model=lambda: firesteel.models.MLP(64, 32, 10),
        strategy=NeuronParallel(),
        workers=2,
        epochs=10,
        batchSize=32,
        optimizer=Adam(lr=5e-3),
        progress="none",
    )
    model = estimator.fit(train_frame)
    model.write().overwrite().save(str(tmp_path / "m"))
    loaded = TorchClassificationModel.load(str(tmp_path / "m"))
    right = [r.label == r.prediction for r in loaded.transform(test_frame).select("label", "prediction").collect()]
    assert sum(right) / len(right) > 0.9
