"""The asynchronous family against its rules: closed forms, each other, and NumPy over random orders of arrival."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arrivals import brief, log, round_robin, verbs
from problem import flat, initial, parts, rows, train
from torch import nn

import firesteel
from firesteel import ADAG, AEASGD, AGN, EAMSGD, EASGD, Downpour, DynSGD, Replay
from firesteel.errors import Fenced, UsageError
from firesteel.net.center import Center, Note, Rules

NOTE = Note(1, 1, 8, 8.0, 1.0, 0.0, 0.1, 0.1)


# ---- each rule against NumPy -----------------------------------------------------------------------------------------


def reference(strategy, start: np.ndarray, events) -> np.ndarray:
    """The rules of the papers, as they stand there."""
    center, version, pulled, seen = start.copy(), 0, {}, {}
    for kind, worker, delta in events:
        if kind == "pull":
            pulled[worker], seen[worker] = version, center.copy()
            continue
        stale = version - pulled[worker]
        if isinstance(strategy, DynSGD):
            center += delta / (stale + 1)
        elif isinstance(strategy, ADAG):
            center += delta / (1 + (center - seen[worker]) ** 2 / strategy.gamma)
        else:
            center += delta
        version += 1
    return center


@pytest.mark.parametrize("strategy", [Downpour(), DynSGD(), AGN(), ADAG(), ADAG(gamma=1e-2), AEASGD(), EAMSGD()], ids=brief)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_merges_follow_the_papers(strategy, workers):
    """Pushes and pulls by themselves, also several pushes in a row, and both in one message."""
    rng = np.random.default_rng(workers)
    start = rng.standard_normal(40)
    center = Center(torch.from_numpy(start.copy()), strategy, workers, rules=Rules(record_every=3))
    events, numbers = [], dict.fromkeys(range(workers), 0)
    for worker in range(workers):
        center.join(worker, 0, 0.0)
        center.pull(worker, 0, 0.0, torch.empty(40, dtype=torch.float64))
        events.append(("pull", worker, None))
    staleness = []
    for _ in range(200):
        worker = int(rng.integers(workers))
        if rng.random() < 0.5:
            center.pull(worker, 0, 0.0, torch.empty(40, dtype=torch.float64))
            events.append(("pull", worker, None))
        else:
            numbers[worker] += 1
            delta, both = 0.1 * rng.standard_normal(40), rng.random() < 0.3
            assert center.push(worker, 0, numbers[worker], NOTE, torch.from_numpy(delta), 0.0, both)
            events.append(("push", worker, delta))
            if both:
                center.pull(worker, 0, 0.0, torch.empty(40, dtype=torch.float64))
                events.append(("pull", worker, None))
    np.testing.assert_allclose(center.params.numpy(), reference(strategy, start, events), rtol=1e-12, atol=1e-12)
    table = center.table().to_pylist()
    version, pulled = 0, {}
    for event in table:
        assert event["version"] == version
        if event["kind"] == "pull":
            pulled[event["worker"]] = version
        elif event["kind"] == "push":
            staleness.append(version - pulled[event["worker"]])
            assert event["staleness"] == staleness[-1]
            version += 1
    recorded = [e for e in table if e["kind"] == "push" and not math.isnan(e["scaling"])]
    assert recorded
    for event in recorded:
        if isinstance(strategy, DynSGD):
            assert event["scaling"] == pytest.approx(1 / (event["staleness"] + 1))
        elif isinstance(strategy, ADAG):
            assert 0 < event["scaling"] <= 1 + 1e-9
        else:
            assert event["scaling"] == pytest.approx(1)


# ---- against each other ----------------------------------------------------------------------------------------------


def played(strategy, workers: int, data, turns=None, window=None, elastic=False, epochs=3.0, batch=16, **settings):
    x = data[0]
    per_worker = [len(range(k, len(x), workers)) for k in range(workers)]
    steps = [math.ceil(epochs * math.ceil(n / batch)) for n in per_worker]
    programs = [verbs(s, window or strategy.window, elastic) for s in steps]
    turns = round_robin(programs) if turns is None else turns(programs)
    order = log(programs, turns, **settings.pop("server", {}))
    return train(data, strategy, workers, on=Replay(order), epochs=epochs, batch_size=batch, **settings)


def shuffled(seed: int):
    def turns(programs):
        rng = np.random.default_rng(seed)
        found = [k for k, p in enumerate(programs) for _ in p]
        rng.shuffle(found)
        return found

    return turns


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_agn_with_window_one_is_downpour(workers):
    data = rows(90)
    first = played(AGN(window=1), workers, data, shuffled(1))
    second = played(Downpour(window=1), workers, data, shuffled(1))
    assert torch.equal(flat(first.model), flat(second.model))


@pytest.mark.parametrize(
    "strategy", [Downpour(4), DynSGD(4), ADAG(4), AGN(1), Downpour(5), Downpour(4, prefetch=True)], ids=brief
)
@pytest.mark.parametrize("optimizer", [firesteel.SGD(lr=0.1, momentum=0.9), firesteel.Adam(lr=1e-2)], ids=["momentum", "adam"])
def test_alone_they_are_plain_training(strategy, optimizer):
    """On real processes: one worker that pushes and pulls ends where a bare loop does, also after a partial window."""
    data = rows(90)
    plain = train(data, firesteel.Single(), 1, optimizer)
    found = train(data, strategy, 1, optimizer)
    torch.testing.assert_close(flat(found.model), flat(plain.model), rtol=1e-4, atol=2e-6)
    assert found.history["samples"].to_pylist()[-1] == plain.history["samples"].to_pylist()[-1]


def test_two_downpour_workers_follow_their_rule():
    """Round robin, window 3, against a loop written out: each worker starts from the center it pulled last."""
    data, window = rows(100), 3
    found = played(Downpour(window), 2, data)
    gang = parts(*data, 2)
    center = flat(initial())
    modules = [initial(), initial()]
    base = [center.clone(), center.clone()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in modules]
    total = gang[0].plan.total_steps
    for start in range(1, total + 1, window):
        for k, part in enumerate(gang):
            for step in range(start, min(start + window, total + 1)):
                x, y, _ = part.batch(step)
                optimizers[k].zero_grad()
                nn.functional.cross_entropy(modules[k](x), y).backward()
                optimizers[k].step()
            center = center + (flat(modules[k]) - base[k])
            base[k] = center.clone()
            nn.utils.vector_to_parameters(center.clone(), modules[k].parameters())
    torch.testing.assert_close(flat(found.model), center, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_elastic_center_is_a_moving_average(workers):
    """With beta = N alpha: center <- (1 - beta) center + beta mean(theta); workers are pulled, not reset."""
    data, period, alpha = rows(96), 4, 0.2
    found = train(data, EASGD(period, alpha), workers)
    gang = parts(*data, workers)
    center = flat(initial())
    modules = [initial() for _ in gang]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in modules]
    total = gang[0].plan.total_steps
    for step in range(1, total + 1):
        for k, part in enumerate(gang):
            x, y, _ = part.batch(step)
            optimizers[k].zero_grad()
            nn.functional.cross_entropy(modules[k](x), y).backward()
            optimizers[k].step()
        if step % period == 0 or step == total:
            thetas = [flat(m) for m in modules]
            for m, theta in zip(modules, thetas, strict=True):
                nn.utils.vector_to_parameters(theta - alpha * (theta - center), m.parameters())
            beta = workers * alpha
            center = (1 - beta) * center + beta * sum(thetas) / workers
    torch.testing.assert_close(flat(found.model), center, rtol=1e-4, atol=1e-5)


def test_aeasgd_follows_its_rule():
    data, window, alpha = rows(64), 2, 0.3
    found = played(AEASGD(window, alpha), 1, data, elastic=True)
    (part,) = parts(*data, 1)
    center, module = flat(initial()), initial()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(1, part.plan.total_steps + 1):
        x, y, _ = part.batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        if step % window == 0 or step == part.plan.total_steps:
            force = alpha * (flat(module) - center)
            nn.utils.vector_to_parameters(flat(module) - force, module.parameters())
            center = center + force
    torch.testing.assert_close(flat(found.model), center, rtol=1e-5, atol=1e-6)


# ---- closed forms ----------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """f(w) = h w^2 / 2, whatever the rows."""

    def __init__(self, w: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return self.w * x


def bowl(curvature: float):
    def loss(outputs, targets):
        return 0.5 * curvature * outputs.square().mean()

    loss.target = "value"
    return loss


def in_a_bowl(strategy, workers: int, steps: int, rate: float, programs, turns, curvature=1.0, **server) -> float:
    ones = np.ones((4 * workers, 1)), np.zeros(4 * workers)
    run = firesteel.train(
        Bowl,
        ones,
        loss=bowl(curvature),
        strategy=strategy,
        optimizer=firesteel.SGD(lr=rate),
        on=Replay(log(programs, turns, **server)),
        batch_size=4,
        epochs=steps,
        validation=None,
        metrics=(),
        progress="none",
    )
    return float(run.model.w.detach())


def test_eamsgd_has_the_papers_sign():
    """On f = x^2 / 2 with rate 0.1 the right rule reaches 6e-10 after 200 steps; the one in dist-keras 3e-5."""
    programs = [verbs(200, 1000, elastic=True)]
    assert programs == [["pull", "pull", "push", "pull"]]
    with pytest.warns(UserWarning, match="stable only below"):
        x = in_a_bowl(EAMSGD(window=1000, alpha=1.0), 1, 200, 0.1, programs, [0, 0, 0, 0])
    w, v = 1.0, 0.0
    for _ in range(200):
        v = 0.9 * v - 0.1 * (w + 0.9 * v)
        w += v
    assert abs(w) == pytest.approx(6e-10, rel=0.1)
    assert x == pytest.approx(w, rel=1e-6)  # with alpha = 1 and one exchange the center ends where the worker is


@pytest.mark.parametrize("stale", [0, 4, 9, 19])
def test_delayed_sgd_is_stable_exactly_below_its_limit(stale):
    """N = tau + 1 workers in turn, window 1: every push is tau stale. Stable iff rate * h < 2 sin(pi / (2 (2 tau + 1)))."""
    limit = 2 * math.sin(math.pi / (2 * (2 * stale + 1)))
    workers, steps = stale + 1, 3000 // (stale + 1)

    def after(factor: float) -> float:
        programs = [verbs(steps, 1)] * workers
        curvature = 4.0
        rate = factor * limit / curvature
        return abs(in_a_bowl(Downpour(1), workers, steps, rate, programs, round_robin(programs), curvature, max_growth=1e200))

    assert after(0.97) < 0.1
    assert after(1.03) > 10


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Downpour(window=0), "window must be at least 1"),
        (lambda: ADAG(gamma=0), "gamma must be greater than 0"),
        (lambda: AEASGD(alpha=0), "alpha must be greater than 0"),
        (lambda: EASGD(period=0), "at least one local step"),
        (lambda: EAMSGD(momentum=1.0), "below 1"),
        (lambda: firesteel.Server(shards=0), "shards >= 1"),
        (lambda: firesteel.Server(max_ahead=-1), "max_ahead >= 0"),
        (lambda: firesteel.Server(max_growth=0.5), "max_growth > 1"),
    ],
)
def test_impossible_settings(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_eamsgd_refuses_another_optimizer():
    with pytest.raises(UsageError, match="brings its own Nesterov step"):
        train(rows(40), EAMSGD(2), 1, firesteel.Adam())
    with pytest.raises(UsageError, match="brings its own Nesterov step"):
        train(rows(40), EAMSGD(2), 1, firesteel.SGD(lr=0.1, momentum=0.9))


def test_a_spring_that_overshoots_is_told():
    with pytest.warns(UserWarning, match=r"stable only below 2/\(N\+1\) = 0.667"):
        played(AEASGD(2, alpha=0.8), 2, rows(40), elastic=True)


def test_agn_takes_the_thesis_rule():
    """Two workers and two layers of weights: round((2 + 2) / 2) = 2."""
    data = rows(96)
    found = played(AGN(), 2, data, window=2)
    assert torch.equal(flat(found.model), flat(played(AGN(2), 2, data).model))


def test_early_exchange_when_the_spring_has_caught_up():
    """A strong spring and a small rate: the worker's own step soon no longer exceeds it, so it exchanges every step."""
    data = rows(64)
    late = train(data, AEASGD(8, alpha=0.5), 1)
    early = train(data, AEASGD(8, alpha=0.5, early=True), 1)
    count = lambda run: sum(k == "push" for k in run.arrivals["kind"].to_pylist())  # noqa: E731
    assert count(early) > count(late)


# ---- exactly once ----------------------------------------------------------------------------------------------------


def center(workers=2, **rules) -> Center:
    return Center(torch.zeros(3), Downpour(), workers, rules=Rules(**rules))


def test_a_push_counts_once_and_in_order():
    c, one = center(), torch.ones(3)
    assert c.join(0, 0, 0.0) == (0, 0)
    assert c.push(0, 0, 1, NOTE, one, 0.0)
    assert not c.push(0, 0, 1, NOTE, one, 0.0)
    with pytest.raises(UsageError, match="next one is 2"):
        c.push(0, 0, 3, NOTE, one, 0.0)
    assert c.params.tolist() == [1, 1, 1] and c.version == 1


def test_what_a_lost_server_had_sent_damps_nothing():
    """After a restart a push may come before any pull; ADAG takes it as it is."""
    one = Center(torch.zeros(3), ADAG(), 2)
    one.join(0, 0, 0.0)
    one.pull(0, 0, 0.0, torch.empty(3))
    assert one.push(0, 0, 1, NOTE, torch.ones(3), 0.0)
    two = Center(torch.zeros(3), ADAG(), 2)
    two.restore(*one.snapshot(), same_run=True)
    assert two.join(0, 1, 0.0)[0] == 1
    assert two.push(0, 1, 2, NOTE, torch.ones(3), 0.0)
    assert two.params.tolist() == [2, 2, 2]


def test_an_older_attempt_is_fenced_off():
    c, one = center(), torch.ones(3)
    c.join(0, 0, 0.0)
    assert c.push(0, 0, 1, Note(5, 5, 40, 40.0, 1.0, 0.0, 0.5, 0.5), one, 0.0)
    assert c.join(0, 1, 0.0) == (1, 5)
    with pytest.raises(Fenced):
        c.push(0, 0, 2, NOTE, one, 0.0)
    with pytest.raises(Fenced):
        c.join(0, 0, 0.0)
    c.leave(0, 0, 0.0)  # the old connection closing means nothing
    assert c.push(0, 1, 2, NOTE, one, 0.0)
    with pytest.raises(UsageError, match="no worker 7"):
        c.join(7, 0, 0.0)


def test_half_a_push_is_declared_lost():
    c = center()
    c.join(0, 0, 0.0)
    c.agree(0, 0, 2, 10, 0.0)  # other shards have two pushes of it
    assert c.push(0, 0, 3, NOTE, torch.ones(3), 0.0)
    assert [e["kind"] for e in c.table().to_pylist()] == ["join", "lost", "lost", "push"]


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_bound_on_staleness_holds_whoever_joins_late_or_again(bound, seed):
    """Each worker in turn at random: it comes, goes, pulls if it may, or pushes; some ten times as eager as the slowest."""
    rng, workers = np.random.default_rng(seed), 4
    c = center(workers, max_ahead=bound)
    sequence, attempt, pulled, worst = [0] * workers, [-1] * workers, [False] * workers, 0
    for turn in range(3000):
        worker = int(rng.choice(workers, p=[0.04, 0.16, 0.4, 0.4]))
        member = c.members.get(worker)
        if member is None or not member.active:
            if turn > 700 * worker:
                attempt[worker] += 1
                sequence[worker], _ = c.join(worker, attempt[worker], 0.0)
                pulled[worker] = False
        elif worker and rng.random() < 0.01:
            c.leave(worker, attempt[worker], 0.0)
        elif pulled[worker]:
            sequence[worker] += 1
            c.push(worker, attempt[worker], sequence[worker], NOTE, torch.zeros(3), 0.0)
            pulled[worker], worst = False, max(worst, c.members[worker].staleness)
        elif not c.must_wait(worker):
            c.pull(worker, attempt[worker], 0.0, torch.empty(3))
            pulled[worker] = True
    assert 0 < worst <= (2 * bound + 1) * (workers - 1)


def test_a_worker_that_joins_late_begins_level_with_the_slowest():
    c = center(3, max_ahead=1)
    for worker, pushes in ((0, 10), (1, 11)):
        c.join(worker, 0, 0.0)
        for number in range(1, pushes + 1):
            c.push(worker, 0, number, NOTE, torch.zeros(3), 0.0)
    c.join(2, 0, 0.0)
    slowest = min(m.clock for m in c.members.values())
    assert c.members[2].clock == slowest > 0 and not c.must_wait(2)
    for number in (1, 2):
        c.push(2, 0, number, NOTE, torch.zeros(3), 0.0)
    assert c.must_wait(2)
    c.leave(2, 0, 0.0)
    c.join(2, 1, 0.0)
    assert c.must_wait(2)  # leaving sets nothing back


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(4), torch.ones(3, dtype=torch.float64)])
def test_pushes_of_the_wrong_size_are_refused(bad):
    c = center()
    c.join(0, 0, 0.0)
    with pytest.raises(UsageError, match="are expected"):
        c.push(0, 0, 1, NOTE, bad, 0.0)
    assert c.version == 0 and not c.params.any()


def test_a_center_that_grows_without_bound_is_rolled_back():
    c = center(max_growth=10.0, check_every=1)
    c.join(0, 0, 0.0)
    for number in range(1, 5):
        c.push(0, 0, number, NOTE, torch.ones(3), 0.0)
    assert c.diverged is None
    c.push(0, 0, 5, NOTE, torch.full((3,), 100.0), 0.0)
    assert c.diverged is not None and c.diverged["worker"] == 0 and c.diverged["sequence"] == 5
    assert c.params.tolist() == [4, 4, 4]
    c.push(0, 0, 6, NOTE, torch.full((3,), float("nan")), 0.0)
    assert c.params.tolist() == [4, 4, 4]


def test_nothing_is_kept_that_was_not_checked():
    kept = []
    c = Center(torch.zeros(3), Downpour(), 1, rules=Rules(max_growth=10.0), keep=lambda p, s, m: kept.append(p.tolist()))
    c.join(0, 0, 0.0)
    c.push(0, 0, 1, NOTE._replace(points=1.0), torch.ones(3), 0.0)
    good = c.snapshot()[0]["params"].clone()
    c.push(0, 0, 2, NOTE._replace(points=2.0), torch.full((3,), 100.0), 0.0)
    assert kept == [[1, 1, 1]] and c.diverged is not None and c.diverged["sequence"] == 2
    assert torch.equal(c.params, good)


@pytest.mark.parametrize("bad", [1e3, float("nan")])
def test_a_bad_center_is_neither_written_down_nor_taken_up(bad):
    c, other = center(max_growth=10.0), center(max_growth=10.0)
    c.join(0, 0, 0.0)
    c.push(0, 0, 1, NOTE, torch.full((3,), bad), 0.0)  # no check is due
    tensors, plain = c.snapshot()
    assert c.diverged is not None and not tensors["params"].any()
    with pytest.raises(UsageError, match="the snapshot's center has the norm"):
        other.restore({**tensors, "params": torch.full((3,), bad)}, plain)
    assert not other.params.any() and not other.members
    for same_run in (True, False):
        again = center(max_growth=10.0)
        again.restore(tensors, plain, same_run)
        assert (again.diverged is not None) == same_run and not again.params.any()


def test_statistics_ride_along_and_are_averaged():
    c = Center(torch.zeros(3), Downpour(), 2, statistics=torch.ones(2))
    assert c.statistics.tolist() == [1, 1]  # as the model began, until a worker says otherwise
    for worker in (0, 1):
        c.join(worker, 0, 0.0)
        c.push(worker, 0, 1, NOTE, torch.tensor([1.0, 1, 1, 10 * worker, 4]), 0.0)
    assert c.params.tolist() == [2, 2, 2] and c.statistics.tolist() == [5, 4]


def test_who_joins_goes_on_with_its_own_statistics_also_from_a_snapshot():
    def fresh():
        return Center(torch.zeros(3), Downpour(), 3, statistics=torch.ones(2))

    c = fresh()
    for worker in (0, 1):
        c.join(worker, 0, 0.0)
        assert c.statistics_for(worker).tolist() == [1, 1]
    for worker in (0, 1):
        c.push(worker, 0, 1, NOTE, torch.tensor([1.0, 1, 1, 10 * worker, 4]), 0.0)
    restored = fresh()
    restored.restore(*c.snapshot(), same_run=False)
    for found, attempt in ((c, 1), (restored, 0)):
        for worker, own in ((0, [0, 4]), (1, [10, 4]), (2, [5, 4])):
            found.join(worker, attempt, 0.0)
            assert found.statistics_for(worker).tolist() == own
        found.push(0, attempt, 2, NOTE, torch.tensor([1.0, 1, 1, 2, 4]), 0.0)
        assert found.statistics.tolist() == [6, 4]  # worker 1's are still in the mean


def test_models_are_kept_when_all_workers_have_come_so_far():
    kept = []
    c = Center(torch.zeros(1), Downpour(), 3, keep=lambda p, s, mark: kept.append((p.item(), mark["epoch"])))
    c.join(2, 0, 0.0)
    c.leave(2, 0, 0.0)  # it had no rows
    for worker in (0, 1):
        c.join(worker, 0, 0.0)
    for number in range(1, 5):
        for worker in (0, 1):
            c.push(worker, 0, number, Note(1, number, 4, 4.0, 1.0, 0.0, number / 2, number / 2), torch.ones(1), 0.0)
    assert kept == [(4.0, 1.0), (8.0, 2.0)]
