"""Laws: what must hold between methods, and between a method and one process that does the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problem import big_batch, flat, initial, mean, parts, rounds, rows, train
from torch.nn import functional as F

import firesteel
from firesteel import DiLoCo, ModelAveraging, PostLocalSGD, Single, SlowMo, SyncSGD


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sync_sgd_is_one_process_with_the_big_batch(workers, optimizer):
    x, y = rows(130)  # 130 rows do not divide by 3, nor by the batch: unequal shards and partial batches
    ours = {"sgd": firesteel.SGD(lr=0.1, momentum=0.9), "adam": firesteel.Adam(lr=3e-3)}[optimizer]
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    }[optimizer]
    run = train((x, y), SyncSGD(), workers, ours)
    close(flat(run.model), big_batch(parts(x, y, workers), plain))


def test_small_buckets_do_not_change_what_sync_sgd_learns():
    data = rows(96)
    close(flat(train(data, SyncSGD(), 2).model), flat(train(data, SyncSGD(bucket_bytes=64), 2).model), 1e-7)


def test_fewer_bits_on_the_wire_change_little_but_something():
    data = rows(96)
    full, half = (flat(train(data, SyncSGD(wire=wire), 2).model) for wire in (None, "bfloat16"))
    assert 0 < float((full - half).abs().max()) < 1e-2


@pytest.mark.parametrize("shared", [True, False])
def test_model_averaging_every_step_with_plain_sgd_is_sync_sgd(shared):
    data = rows(128)
    close(flat(train(data, ModelAveraging(period=1), 2).model), flat(train(data, SyncSGD(), 2).model))


@pytest.mark.parametrize("fused", [True, False])
def test_single_is_the_bare_loop_bit_for_bit(fused):
    x, y = rows(130)
    (part,) = parts(x, y, 1)
    module = initial()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=fused)
    for step in range(1, part.plan.total_steps + 1):
        index = part.plan.index(step)
        optimizer.zero_grad()
        F.cross_entropy(module(part.x[index]), part.y[index]).backward()
        optimizer.step()
    run = train((x, y), Single(), 1, firesteel.Adam(lr=1e-3, fused=fused))
    assert torch.equal(flat(run.model), flat(module))


@pytest.mark.parametrize("strategy", [SyncSGD(), ModelAveraging(5)])
def test_two_runs_with_one_seed_are_bit_equal(strategy):
    data = rows(100)
    one, two = (train(data, strategy, 2, firesteel.Adam()) for _ in range(2))
    assert torch.equal(flat(one.model), flat(two.model))
    other = train(data, strategy, 2, firesteel.Adam(), seed=8)
    assert not torch.equal(flat(one.model), flat(other.model))


def test_unequal_shards_give_the_weighted_mean():
    x, y = rows(51)  # 26 and 25 rows
    run = train((x, y), ModelAveraging(3), 2)
    reference = rounds(parts(x, y, 2), 3, lambda p: torch.optim.SGD(p, lr=0.1), mean)
    close(flat(run.model), reference)


@pytest.mark.parametrize("strategy", [SyncSGD(), ModelAveraging(3)])
def test_a_weight_column_gives_the_weighted_mean(strategy):
    x, y = rows(70)
    w = np.random.default_rng(0).integers(0, 4, 70).astype(np.float32)
    run = train((x, y, w), strategy, 2, weight="weight")
    gang = parts(x, y, 2, w=w)
    plain = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    reference = big_batch(gang, plain) if isinstance(strategy, SyncSGD) else rounds(gang, 3, plain, mean)
    close(flat(run.model), reference)


def test_fewer_rows_than_workers():
    x, y = rows(2)
    run = train((x, y), SyncSGD(), 3)
    close(flat(run.model), big_batch(parts(x, y, 3), lambda p: torch.optim.SGD(p, lr=0.1)))


def test_slow_momentum_follows_its_rule():
    x, y = rows(100)
    beta, alpha, rate, start, u = 0.6, 0.9, 0.1, flat(initial()), 0.0

    def meet(vectors, weights):
        nonlocal start, u
        u = beta * u + (start - mean(vectors, weights)) / rate
        start = start - alpha * rate * u
        return start

    reference = rounds(parts(x, y, 2), 4, lambda p: torch.optim.SGD(p, lr=rate), meet)
    close(flat(train((x, y), SlowMo(period=4, beta=beta, alpha=alpha), 2).model), reference)


def test_diloco_is_nesterov_sgd_on_the_way_travelled():
    x, y = rows(100)
    outer = initial()
    nesterov = torch.optim.SGD(outer.parameters(), lr=0.7, momentum=0.9, nesterov=True)

    def meet(vectors, weights):
        gradient = flat(outer) - mean(vectors, weights)
        torch.nn.utils.vector_to_parameters(flat(outer), outer.parameters())
        offset = 0
        for p in outer.parameters():
            p.grad = gradient[offset : offset + p.numel()].view_as(p).clone()
            offset += p.numel()
        nesterov.step()
        return flat(outer)

    reference = rounds(parts(x, y, 2), 4, lambda p: torch.optim.AdamW(p, lr=1e-3), meet)
    close(flat(train((x, y), DiLoCo(period=4), 2, firesteel.AdamW(lr=1e-3)).model), reference)


@pytest.mark.parametrize("strategy", [SlowMo(period=4, beta=0.0), DiLoCo(4, outer_rate=1.0, outer_momentum=0.0)])
def test_without_momentum_they_are_model_averaging(strategy):
    data = rows(100)
    close(flat(train(data, strategy, 2).model), flat(train(data, ModelAveraging(4), 2).model), 2e-6)


def test_post_local_sgd_is_sync_first_and_local_later():
    data = rows(100)
    steps = parts(*data, 2)[0].plan.total_steps
    late, never = train(data, PostLocalSGD(switch=steps), 2), train(data, SyncSGD(), 2)
    close(flat(late.model), flat(never.model), 1e-7)
    early, local = train(data, PostLocalSGD(switch=0, period=4), 2), train(data, ModelAveraging(4), 2)
    close(flat(early.model), flat(local.model), 1e-7)


def test_an_ensemble_answers_with_the_mean_of_its_members():
    x, y = rows(100)
    run = train((x, y), firesteel.Ensemble(), 2)
    alone = [train((x[k::2], y[k::2]), Single(), 1) for k in range(2)]
    sample = torch.from_numpy(x[:5])
    members = [torch.softmax(m(sample), 1) for m in run.model.members]
    torch.testing.assert_close(run.model(sample).exp(), sum(members) / 2)
    # Member 0 has the rows and the stream of a worker that trains alone on its shard.
    torch.testing.assert_close(flat(run.model.members[0]), flat(alone[0].model))
    assert not torch.equal(flat(run.model.members[0]), flat(run.model.members[1]))


@pytest.mark.parametrize("state", ["keep", "average", "reset"])
def test_each_way_with_the_optimizers_state_learns_differently(state):
    data = rows(100)
    run = train(data, ModelAveraging(4, state=state), 2, firesteel.Adam(lr=1e-2))
    other = train(data, ModelAveraging(4, state="reset" if state != "reset" else "keep"), 2, firesteel.Adam(lr=1e-2))
    assert not torch.equal(flat(run.model), flat(other.model))


@pytest.mark.spark
@pytest.mark.parametrize("strategy", [SyncSGD(), ModelAveraging(4)])
def test_spark_and_local_give_the_same_parameters(spark, strategy):
    import pandas as pd

    x, y = rows(101)
    frame = spark.createDataFrame(pd.DataFrame({"features": list(x), "label": y})).coalesce(1)
    there = train(frame, strategy, 2, firesteel.Adam(), on=firesteel.Spark(workers=2))
    here = train((x, y), strategy, 2, firesteel.Adam())
    close(flat(there.model), flat(here.model), 1e-6)
