"""NeuronParallel with local steps: its rule against references written out in full, its convergence, and its bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from programs import gang
from torch import Tensor, nn
from torch.nn import functional as F

import firesteel
from firesteel import Cluster, NeuronParallel, UsageError
from firesteel.data.batches import Plan
from firesteel.data.shard import Batch
from firesteel.losses import resolve_loss
from firesteel.parts.cuts import shares
from firesteel.parts.meetings import Memory
from firesteel.parts.network import network
from firesteel.worker import Worker

Tensors = dict[str, Tensor]
ROWS = 24


class Rows:
    """A worker's rows; every batch of it has all of them, in order."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.rows = batch.rows

    def take(self, index: Tensor) -> Batch:
        return self.batch


def data(features: int, classes: int) -> Batch:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, features, generator=draw, dtype=torch.float64)
    return Batch((x,), torch.randint(classes, (ROWS,), generator=draw), None, ROWS, float(ROWS))


def labels(batch: Batch) -> Tensor:
    assert batch.target is not None
    return batch.target


def whole(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().double()


def crew(
    build: Callable[[], nn.Module],
    strategy: NeuronParallel,
    batch: Batch,
    workers: int,
    program: Callable[..., Any],
    **settings,
) -> list[Any]:
    """Run `program(worker, net)` on every worker, with its part of the network; returns the members of the simulation."""
    lr, steps, loss = settings.pop("lr", 0.5), settings.pop("steps", 1), settings.pop("loss", "cross_entropy")
    module = whole(build)
    numbers = module.state_dict()
    chain = network(module.to("meta"), batch.inputs, "NeuronParallel")

    async def begin(net, member):
        part: Any = strategy.part(chain, batch.cut(0, 0), net.rank, workers).to_empty(device="cpu").train()
        tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
        with torch.no_grad():
            for name, piece in part.pieces.items():
                tensors[name].copy_(piece.cut.take(numbers[piece.name]))
        own = batch.cut(*shares(ROWS, workers)[net.rank])
        plan, rows = Plan(own.rows, own.rows, own.rows, steps, 0, net.rank), cast(Any, Rows(own))
        worker = Worker(part, resolve_loss(loss, False), firesteel.SGD(lr=lr), rows, plan, trace=member.trace, **settings)
        worker.wait = member.wait
        part.bind(net)
        member.worker, member.published = worker, []
        net.control.publish = lambda params, rest: member.published.append(params.clone())
        return await program(worker, net)

    return gang(Cluster(workers), begin)


def course(build, strategy: NeuronParallel, batch: Batch, workers: int, **settings) -> tuple[list[Tensors], list[Any]]:
    """The whole network's tensors before and after every round of full-batch training, and the members."""
    members = crew(build, strategy, batch, workers, strategy.run, **settings)
    found = [whole(build).state_dict()]
    for vectors in zip(*(member.published for member in members), strict=True):
        state = {name: torch.full_like(p, torch.nan) for name, p in found[0].items()}
        for member, vector in zip(members, vectors, strict=True):
            for slot in member.worker.slots:
                piece = member.worker.module.pieces[slot.name]
                piece.cut.put(state[piece.name], slot.view(vector))
        found.append(state)
    return found, members


def trained(build, strategy: NeuronParallel, batch: Batch, workers: int, **settings) -> tuple[Tensors, list[Any]]:
    states, members = course(build, strategy, batch, workers, **settings)
    return states[-1], members


def apart(mine: Tensors, theirs: Tensors) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


# ---- references ------------------------------------------------------------------------------------------------------


def softmax() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7))


def pull(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of mean cross-entropy with respect to the logits."""
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)


def softmax_rounds(
    batch: Batch, workers: int, k: int, damping: float, lr: float, rounds: int, clip: float = math.inf
) -> Tensors:
    """Damped block Jacobi of softmax regression, a block being some classes: other classes' logits stand still."""
    x, y = batch.inputs[0], labels(batch)
    state = {name: p.detach().clone() for name, p in whole(softmax).state_dict().items()}
    for _ in range(rounds):
        logits = x @ state["0.weight"].T + state["0.bias"]
        g = pull(logits, y)
        norm = float(torch.cat([(g.T @ x).flatten(), g.sum(0)]).norm())
        scale = min(1.0, clip / (norm + 1e-6))
        for start, stop in shares(7, workers):
            w, b = state["0.weight"][start:stop].clone(), state["0.bias"][start:stop].clone()
            for j in range(k):
                frozen = logits.clone()
                frozen[:, start:stop] = x @ w.T + b
                own = pull(frozen, y)[:, start:stop]
                step = lr * scale * (damping if j else 1.0)
                w, b = w - step * own.T @ x, b - step * own.sum(0)
            state["0.weight"][start:stop], state["0.bias"][start:stop] = w, b
    return state


def mlp_rounds_by_inputs(batch: Batch, workers: int, k: int, damping: float, lr: float, rounds: int) -> Tensors:
    """An MLP whose second layer adds up what the workers contribute: the others' weights stand still, and that is all."""
    x, y = batch.inputs[0], labels(batch)
    state = {name: p.detach().clone() for name, p in whole(mlp).state_dict().items()}
    for _ in range(rounds):
        new = {name: p.clone() for name, p in state.items()}
        for (h0, h1), (c0, c1) in zip(shares(8, workers), shares(7, workers), strict=True):
            places: dict[str, Any] = {"0.weight": slice(h0, h1), "0.bias": slice(h0, h1), "2.bias": slice(c0, c1)}
            places["2.weight"] = (slice(None), slice(h0, h1))
            mine = {name: p.clone().requires_grad_() for name, p in state.items()}
            for j in range(k):
                hidden = F.relu(F.linear(x, mine["0.weight"], mine["0.bias"]))
                loss = F.cross_entropy(F.linear(hidden, mine["2.weight"], mine["2.bias"]), y)
                grads = dict(zip(mine, torch.autograd.grad(loss, list(mine.values())), strict=True))
                with torch.no_grad():
                    for name, place in places.items():
                        mine[name][place] -= lr * (damping if j else 1.0) * grads[name][place]
            for name, place in places.items():
                new[name][place] = mine[name].detach()[place]
        state = new
    return state


def mlp_rounds_by_outputs(batch: Batch, workers: int, k: int, damping: float, lr: float, rounds: int) -> Tensors:
    """An MLP of which each worker has units of both layers: the others' activations, logits and gradients stand still."""
    x, y = batch.inputs[0], labels(batch)
    state = {name: p.detach().clone() for name, p in whole(mlp).state_dict().items()}
    for _ in range(rounds):
        w1, b1, w2, b2 = (state[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
        hidden = F.relu(x @ w1.T + b1)
        logits = hidden @ w2.T + b2
        g = pull(logits, y)
        back = g @ w2  # [B, 8]
        new = {name: p.clone() for name, p in state.items()}
        for (h0, h1), (c0, c1) in zip(shares(8, workers), shares(7, workers), strict=True):
            u, c, v, d = w1[h0:h1].clone(), b1[h0:h1].clone(), w2[c0:c1].clone(), b2[c0:c1].clone()
            others = back[:, h0:h1] - g[:, c0:c1] @ v[:, h0:h1]
            for j in range(k):
                z = x @ u.T + c
                a, o = hidden.clone(), logits.clone()
                a[:, h0:h1] = z.relu()
                o[:, c0:c1] = a @ v.T + d
                own = pull(o, y)[:, c0:c1]
                down = (others + own @ v[:, h0:h1]) * (z > 0)
                step = lr * (damping if j else 1.0)
                u, c, v, d = u - step * down.T @ x, c - step * down.sum(0), v - step * own.T @ a, d - step * own.sum(0)
            for name, place, value in (("0.weight", (h0, h1), u), ("0.bias", (h0, h1), c)):
                new[name][slice(*place)] = value
            new["2.weight"][c0:c1], new["2.bias"][c0:c1] = v, d
        state = new
    return state


# ---- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("damping", "counts"), [(None, None), (1.0, 1.0), (0.3, 0.3)])
def test_softmax_regression_is_block_jacobi(workers, damping, counts):
    batch = data(5, 7)
    for rounds in (1, 2, 5):
        mine, _ = trained(softmax, NeuronParallel(local_steps=4, damping=damping), batch, workers, steps=rounds)
        theirs = softmax_rounds(batch, workers, 4, counts or 1 / workers, 0.5, rounds)
        assert apart(mine, theirs) < 1e-12


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("weights", "rule"), [("alternate", mlp_rounds_by_inputs), ("rows", mlp_rounds_by_outputs)])
def test_an_mlp_moves_as_one_process_would_that_keeps_the_others_still(workers, weights, rule):
    batch = data(5, 7)
    for rounds in (1, 4):
        mine, _ = trained(mlp, NeuronParallel(weights=weights, local_steps=4), batch, workers, steps=rounds)
        assert apart(mine, rule(batch, workers, 4, 1 / workers, 0.5, rounds)) < 1e-12


@pytest.mark.parametrize("weights", ["alternate", "rows"])
def test_one_local_step_is_exact_training(weights):
    batch = data(5, 7)
    strategy = NeuronParallel(weights=weights, local_steps=1, damping=0.5)

    async def exact(worker, net):
        for _, rows in worker.steps():
            worker.step(worker.gradient(rows))
        return worker.params.clone()

    plain = crew(mlp, strategy, batch, 3, exact, steps=5)
    mine, members = trained(mlp, strategy, batch, 3, steps=5)
    assert all(torch.equal(a.result, b.result) for a, b in zip(plain, members, strict=True))
    assert apart(mine, mlp_rounds_by_inputs(batch, 1, 1, 1.0, 0.5, 5)) < 1e-12


@pytest.mark.parametrize("weights", ["alternate", "rows"])
def test_before_anyone_has_moved_the_frozen_gradient_is_the_gradient(weights):
    async def twice(worker, net):
        part = worker.module
        for _, rows in worker.steps():
            part.memory = Memory()
            exact = worker.gradient(rows).clone()
            part.alone = True
            return exact, worker.gradient(rows)

    deep = lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7))  # noqa: E731
    for member in crew(deep, NeuronParallel(weights=weights), data(5, 7), 3, twice):
        exact, frozen = member.result
        assert exact.any() and torch.equal(exact, frozen)


def test_all_steps_on_a_batch_have_the_same_dropout_masks():
    drops = lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 7))  # noqa: E731
    found = []
    for k in (1, 4):
        torch.manual_seed(5)
        _, members = trained(drops, NeuronParallel(local_steps=k), data(5, 7), 1, lr=1e-300)
        found.append((members[0].worker.grads, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_batch_has_one_rate_and_one_scale():
    """The schedule moves once for each batch, after all its steps; the gradients of all are scaled as the exact one is."""
    batch, rates = data(5, 7), []

    class Halved:
        def build(self, optimizer):
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates.append(step) or 0.0**step)

    once, _ = trained(softmax, NeuronParallel(local_steps=4), batch, 2, steps=1)
    thrice, _ = trained(softmax, NeuronParallel(local_steps=4), batch, 2, steps=3, schedule=Halved())
    assert apart(once, thrice) == 0 and max(rates) == 3
    clipped, _ = trained(softmax, NeuronParallel(local_steps=4), batch, 2, steps=3, clip_norm=0.1)
    assert apart(clipped, softmax_rounds(batch, 2, 4, 0.5, 0.5, 3, clip=0.1)) < 1e-12
    assert apart(clipped, softmax_rounds(batch, 2, 4, 0.5, 0.5, 3)) > 1e-2


def test_local_steps_send_nothing():
    for build in (softmax, mlp):
        sent = []
        for k in (1, 8):
            _, members = trained(build, NeuronParallel(local_steps=k), data(5, 7), 3, steps=3)
            sent.append([(m.trace.bytes_sent, m.trace.rounds) for m in members])
        assert sent[0] == sent[1] and min(sent[0])[0] > 0


# ---- convergence -----------------------------------------------------------------------------------------------------


def objective(state: Tensors, batch: Batch) -> tuple[float, float]:
    """Cross-entropy of softmax regression, and the squared norm of its gradient."""
    logits = batch.inputs[0] @ state["0.weight"].T + state["0.bias"]
    g = pull(logits, labels(batch))
    return float(F.cross_entropy(logits, labels(batch))), float(
        (g.T @ batch.inputs[0]).square().sum() + g.sum(0).square().sum()
    )


def curvature(batch: Batch) -> float:
    """A Lipschitz constant of softmax regression's gradient."""
    x = F.pad(batch.inputs[0], (0, 1), value=1.0)
    return 0.5 * float(torch.linalg.matrix_norm(x, 2)) ** 2 / len(x)


def optimum(batch: Batch) -> float:
    model = nn.Linear(5, 3).double()
    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(model(batch.inputs[0]), labels(batch))
        loss.backward()
        return loss

    _ = solver.step(closure)  # pyright: ignore[reportArgumentType]
    return closure().item()


def three_classes() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3))


@pytest.mark.parametrize("damping", [None, 1.0])
def test_every_round_descends_as_the_theorem_says(damping):
    """eta s L = 1/4: f falls by at least 4/9 eta s |grad f|^2 in every round."""
    batch, k, workers = data(5, 3), 4, 3
    s = 1 + (k - 1) * (1 / workers if damping is None else damping)
    lr = 0.25 / (s * curvature(batch))
    states, _ = course(three_classes, NeuronParallel(local_steps=k, damping=damping), batch, workers, steps=60, lr=lr)
    values = [objective(state, batch) for state in states]
    for (before, square), (after, _) in itertools.pairwise(values):
        assert after <= before - 4 / 9 * lr * s * square


def test_it_comes_to_the_optimum_in_fewer_rounds():
    """A round is s steps long; undamped too, as classes of a softmax depend on each other but little (c <= 2)."""
    batch = data(5, 3)
    lowest, needed = optimum(batch), {}
    for k, damping, rounds in ((1, None, 140), (4, None, 75), (4, 1.0, 45)):
        strategy = NeuronParallel(local_steps=k, damping=damping)
        states, _ = course(three_classes, strategy, batch, 3, steps=rounds, lr=1 / curvature(batch))
        gaps = [objective(state, batch)[0] - lowest for state in states]
        assert -1e-12 < gaps[-1] < 1e-6
        needed[k, damping] = next(number for number, gap in enumerate(gaps) if gap < 1e-6)
    assert needed[4, None] < needed[1, None] / 1.9 and needed[4, 1.0] < needed[1, None] / 3.5


def added_up(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of the outputs' sum: of all losses the one by which outputs depend on each other most."""
    return (outputs.sum(1) - targets).square().mean() / 2


@pytest.mark.parametrize(("k", "damping", "converges"), [(1, 1.0, True), (4, None, True), (4, 1.0, False), (12, None, False)])
def test_where_the_workers_outputs_are_added_up_local_steps_can_overshoot(k, damping, converges):
    """With eta = 1/L an exact step solves it; the error of a round's start is multiplied by 1 - N (1 - q), as on the page."""
    workers, rounds = 3, 12
    x = torch.linalg.qr(data(4, 3).inputs[0])[0] * math.sqrt(ROWS)  # of unit covariance
    batch = Batch((x,), labels(data(4, 3)), None, ROWS, float(ROWS))
    build = lambda: nn.Sequential(nn.Linear(4, 6, bias=False))  # noqa: E731
    own = 2.0  # outputs of a worker, and so the curvature of its own weights; of all together 6
    lr = 1 / (own * workers)
    strategy = NeuronParallel(local_steps=k, damping=damping)
    states, _ = course(build, strategy, batch, workers, steps=rounds, lr=lr, loss=added_up)
    best = x.T @ labels(batch).double() / ROWS
    errors = [state["0.weight"].sum(0) - best for state in states]
    q = (1 - lr * own) * (1 - (1 / workers if damping is None else damping) * lr * own) ** (k - 1)
    factor = 1 - workers * (1 - q)
    for number, error in enumerate(errors):
        torch.testing.assert_close(error, errors[0] * factor**number, rtol=1e-9, atol=1e-12)
    assert (float(errors[-1].norm()) < 0.1 * float(errors[0].norm())) == converges
    assert (abs(factor) < 1) == converges


# ---- refusals --------------------------------------------------------------------------------------------------------


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 6), nn.LayerNorm(6), nn.Linear(6, 3))


@pytest.mark.parametrize(("build", "shape", "name"), [(convolutions, (1, 8, 8), "0.weight"), (normalised, (64,), "1.weight")])
def test_weights_that_every_worker_has_are_refused_by_name(build, shape, name):
    with pytest.raises(UsageError, match=f"local_steps=2.*'{name}' is at every worker.*local_steps=1"):
        firesteel.train(
            build,
            (torch.zeros(8, *shape).numpy(), torch.arange(8).numpy() % 3),
            strategy=NeuronParallel(local_steps=2),
            on=firesteel.Local(workers=2),
            max_steps=1,
            validation=None,
            progress="none",
        )


@pytest.mark.parametrize(("conv", "steps"), [("data", 1), ("split", 2)])
def test_the_ways_out_that_the_refusal_names(conv, steps):
    x = torch.zeros(8, 1, 8, 8)
    chain = network(convolutions().to("meta"), (x[:2],), "NeuronParallel")
    part = NeuronParallel(conv=conv, local_steps=steps).part(chain, Batch((x[:0],), None, None, 0, 0.0), 0, 2)
    assert dict(part.named_parameters())


@pytest.mark.parametrize("settings", [{"local_steps": 0}, {"damping": 0.0}, {"damping": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        NeuronParallel(**settings)
