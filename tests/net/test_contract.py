"""One contract for every net: the verbs mean the same over sockets and in shared memory, for any number of workers."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from gangs import gang

SHARED = pytest.mark.parametrize("share", [True, False], ids=["shared memory", "sockets"])
SIZES = pytest.mark.parametrize("size", [1, 2, 3])


def mine(rank: int) -> torch.Tensor:
    return torch.arange(5, dtype=torch.float32) * (rank + 1) + rank


def everyone(size):
    return torch.stack([mine(r) for r in range(size)])


def results(found):
    assert all(kind == "ok" for kind, _, _ in found.values()), found
    return [found[r][1] for r in sorted(found)]


@SHARED
@SIZES
def test_every_collective(size, share):
    async def program(net):
        x = mine(net.rank)
        return [
            (await net.all_reduce(x.clone())).tolist(),
            (await net.all_reduce(x.clone(), "sum")).tolist(),
            (await net.all_reduce(x.clone(), "max")).tolist(),
            (await net.all_reduce(x.clone(), weight=net.rank + 0.5)).tolist(),
            (await net.all_reduce(x.clone(), weight=0.0)).tolist(),
            (await net.all_gather(x[None])).tolist(),
            (await net.reduce_scatter(x.clone(), "sum")).tolist(),
            (await net.broadcast(x.clone(), root=net.size - 1)).tolist(),
            (await net.all_reduce(x.double().view(5, 1), "sum")).tolist(),
        ]

    all_x, weights = everyone(size), torch.arange(size) + 0.5
    for rank, got in enumerate(results(gang(size, program, share))):
        expected = [
            all_x.mean(0),
            all_x.sum(0),
            all_x.amax(0),
            (all_x * weights[:, None]).sum(0) / weights.sum(),
            all_x.mean(0),
            all_x,
            all_x.sum(0).tensor_split(size)[rank],
            mine(size - 1),
            all_x.sum(0)[:, None],
        ]
        for number, (a, b) in enumerate(zip(got, expected, strict=True)):
            got_x = torch.tensor(a, dtype=torch.float32)
            torch.testing.assert_close(got_x, b.float(), msg=lambda m, n=number: f"verb {n}: {m}")


@SHARED
def test_several_posted_before_the_first_is_awaited(share):
    async def program(net):
        posted = [net.all_reduce(torch.full((1000 * (i + 1),), float(net.rank + i)), "sum") for i in range(11)]
        return [float((await p).sum()) for p in posted]

    for got in results(gang(2, program, share)):
        assert got == [1000.0 * (i + 1) * (2 * i + 1) for i in range(11)]


@SHARED
def test_messages_grow(share):
    async def program(net):
        return [float((await net.all_reduce(torch.ones(n))).sum()) for n in (3, 3_000_000, 7, 6_000_000)]

    assert results(gang(2, program, share)) == [[3.0, 3e6, 7.0, 6e6]] * 2


def test_all_ranks_get_the_same_bits_in_shared_memory():
    async def program(net):
        x = torch.randn(10_001, generator=torch.Generator().manual_seed(net.rank))
        return (await net.all_reduce(x, weight=net.rank + 1.0)).numpy().tobytes()

    assert len(set(results(gang(3, program, True)))) == 1


@SHARED
def test_send_and_recv_keep_shape_and_type(share):
    async def program(net):
        if net.rank == 0:
            await net.send(torch.arange(6).view(2, 3), 1)
            await net.send(torch.ones(2, dtype=torch.float64), 1)
            return None
        first, second = await net.recv(0), await net.recv(0)
        return first.tolist(), str(first.dtype), second.tolist(), str(second.dtype)

    _, got = results(gang(2, program, share))
    assert got == ([[0, 1, 2], [3, 4, 5]], "torch.int64", [1.0, 1.0], "torch.float64")


@SHARED
def test_a_group_is_a_net_of_its_own(share):
    async def program(net):
        if net.rank == 1:
            return float(await net.all_reduce(torch.tensor([1.0]), "sum"))
        pair = net.group([2, 0])
        inside = float(await pair.all_reduce(torch.tensor([10.0 * net.rank]), "sum"))
        return pair.rank, inside, float(await net.all_reduce(torch.tensor([1.0]), "sum"))

    assert results(gang(3, program, share)) == [(1, 20.0, 3.0), 3.0, (0, 20.0, 3.0)]


def test_a_group_on_one_host_shares_memory_until_the_gang_leaves():
    """Sums in order of the group's ranks are those of shared memory; its files are closed with the gang's net."""

    async def program(net):
        def files():
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            return sum("memfd:firesteel" in os.readlink(link) for link in links if os.path.islink(link))

        order, before = [3, 1, 2, 0], files()
        group = net.group(order)
        pair = group.group([group.rank // 2 * 2, group.rank // 2 * 2 + 1])
        xs = [torch.randn(10_001, generator=torch.Generator().manual_seed(rank)) for rank in order]
        total = await group.all_reduce(xs[group.rank].clone(), "sum")
        both = await pair.all_reduce(xs[group.rank].clone(), "sum")
        first = group.rank // 2 * 2
        exact = torch.equal(total, xs[0] + xs[1] + xs[2] + xs[3]), torch.equal(both, xs[first] + xs[first + 1])
        held = files() - before
        net.close()
        return exact, before, held, files()

    # A worker holds the file of each member of the gang, the group, the pair; each by its descriptor and by its mapping.
    assert results(gang(4, program, True)) == [((True, True), 2 * 4, 2 * (4 + 2), 0)] * 4


@SHARED
@pytest.mark.parametrize("whole", [None, 1, 3], ids=["groups alone", "all meet at each step", "all meet at every third"])
def test_all_workers_stop_at_the_same_publish_point_whatever_groups_they_are_in(share, whole):
    """Worker 0 is asked after the fourth step's reductions: its group alone must not hear it, or not before the others."""

    async def program(net):
        row, column = net.group([0, 1] if net.rank < 2 else [2, 3]), net.group([net.rank % 2, net.rank % 2 + 2])
        published = []
        net.control.publish = lambda params, rest: published.append((float(params), float(rest[0])))
        net.control.resumed = (torch.tensor(7.0),)
        for step in range(1, 13):
            if whole is not None and step % whole == 0:
                await net.all_reduce(torch.ones(1))
            if net.rank == 0 and step == 4:
                net.control.stop_asked = 1.0
            await row.all_reduce(torch.ones(1))
            await column.all_reduce(torch.ones(1))
            (net, row, column)[step % 3].publish(torch.tensor(float(step)), torch.tensor(net.rank + 0.5))
            if net.control.stop_agreed:
                break
        return published, float(column.resume()[0])

    stops = 5 if whole == 1 else 4
    expected = [([(float(s), rank + 0.5) for s in range(1, stops + 1)], 7.0) for rank in range(4)]
    assert results(gang(4, program, share)) == expected


@pytest.mark.parametrize(("size", "expected"), [(2, 4000), (3, 5333)])
def test_bytes_are_those_of_a_ring(size, expected):
    async def program(net):
        await net.all_reduce(torch.ones(1000), "sum")

    for kind, _, sent in gang(size, program, False).values():
        assert kind == "ok"
        assert abs(sent - expected) <= 16  # the weight and the request to stop ride along


@SHARED
def test_a_killed_worker_is_noticed_at_once(share):
    async def program(net):
        await net.all_reduce(torch.ones(3))
        if net.rank == 1:
            raise KeyError("gone")
        await net.all_reduce(torch.ones(3))

    found = gang(2, program, share)
    assert "KeyError" in found[1][1]
    assert found[0][0] == "error" and "PeerLost" in found[0][1]


def test_a_silent_worker_is_noticed_in_time():
    async def program(net):
        await net.all_reduce(torch.ones(3))
        if net.rank == 1:
            signal.pause()
        await net.all_reduce(torch.ones(3))

    found = gang(2, program, True, seconds=1.0, silent=1)
    assert "silent for 1 s" in found[0][1]


def test_unequal_calls_are_an_error_that_names_both():
    async def program(net):
        await net.all_reduce(torch.ones(3 + net.rank))

    found = gang(2, program, True)
    assert any("called all_reduce on 12 bytes, worker 1 all_reduce on 16" in text for _, text, _ in found.values())


def test_different_calls_on_as_many_bytes_are_an_error_that_names_both():
    async def program(net):
        await (net.all_gather(torch.ones(4)) if net.rank else net.reduce_scatter(torch.ones(4)))

    found = gang(2, program, True)
    assert any("called reduce_scatter on 16 bytes, worker 1 all_gather on 16" in text for _, text, _ in found.values())


@pytest.mark.parametrize("verb", ["send", "recv", "broadcast", "group"])
def test_workers_that_do_not_exist_are_refused_at_once(verb):
    async def program(net):
        x = torch.zeros(1)
        calls = {
            "send": lambda: net.send(x, 2),
            "recv": lambda: net.recv(2),
            "broadcast": lambda: net.broadcast(x, 2),
            "group": lambda: net.group([0, 1, 2]),
        }
        await calls[verb]()

    for rank, (kind, text, _) in gang(2, program, True).items():
        assert kind == "error" and f"StrategyError: worker {rank} " in text and "but this net has the workers 0 .. 1" in text
