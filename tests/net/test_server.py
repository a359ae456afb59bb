"""A server's sockets: who may come in, what is refused, that nobody waits for anybody, and the guards."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

import firesteel
from firesteel import Cluster, Downpour, Local, Server, Simulated
from firesteel.checkpoint import Folder, StoreBoard, unpack
from firesteel.errors import Fenced, PeerLost
from firesteel.net import certificates, door, serving, wire
from firesteel.net.center import Note, Rules
from firesteel.net.client import Address, Caller, CenterNet, Finder
from firesteel.net.meeting import serve_store
from firesteel.net.serving import Server as Process
from firesteel.net.serving import Serving
from firesteel.sealing import seal
from firesteel.trace import Trace

TOKEN = "a token of this test"
SIZE = 1000
HOST = "127.0.0.1"


def started(folder, params, certificate=None, statistics=torch.zeros(0)) -> Process:
    settings = Serving(
        Downpour(), params, statistics, 4, 1, HOST, HOST, TOKEN, Rules(), ("", 0, ""), certificate, None, None, {}
    )
    found = Process(settings, 0, str(folder))
    threading.Thread(target=found.serve, daemon=True).start()
    return found


@pytest.fixture
def server(tmp_path):
    found = started(tmp_path, torch.zeros(SIZE))
    yield found
    found.shutdown()


def address(server, token=TOKEN) -> Address:
    return Address((f"127.0.0.1:{server.port}",), token, None)


def net(server, rank=0, attempt=0, size=4, numbers=SIZE) -> CenterNet:
    found = CenterNet(rank, size, attempt, lambda: address(server), [slice(0, numbers)], torch.float32, Trace(rank))
    found.note = lambda: Note(1, found.sequence, 8, 8.0, 1.0, 0.0, 0.1, 0.1)
    return found


def await_(pending):
    from firesteel.net.protocol import drive

    async def program():
        return await pending

    return drive(program())


def test_push_and_pull(server):
    one, two = net(server, 0), net(server, 1)
    assert one.join() == two.join() == 0
    assert not await_(one.pull()).any()
    await_(one.push(torch.ones(SIZE)))
    await_(one.push(torch.ones(SIZE)))
    assert torch.equal(await_(one.pull()), torch.full((SIZE,), 2.0))
    await_(two.push(torch.ones(SIZE)))
    mine = await_(two.pull())
    mine.zero_()  # a tensor of one's own
    assert torch.equal(await_(one.pull()), torch.full((SIZE,), 3.0))
    one.close()
    two.close()
    kinds = [e["kind"] for e in server.center.table().to_pylist()]
    assert kinds.count("push") == 3 and kinds.count("leave") == 2


@pytest.mark.parametrize("verb", ["push", "exchange"])
@pytest.mark.parametrize("wrong", [torch.ones(SIZE).double(), torch.ones(SIZE - 1), torch.ones(SIZE, 1), np.ones(SIZE), 1.0])
def test_what_is_no_delta_is_not_sent(server, verb, wrong):
    one = net(server)
    one.join()
    with pytest.raises(
        firesteel.StrategyError, match=rf"net.{verb} was given .*like worker.params|type and shape of worker.params"
    ):
        getattr(one, verb)(wrong)
    await_(one.push(torch.ones(SIZE)))
    assert torch.equal(await_(one.pull()), torch.ones(SIZE))
    one.close()


def test_a_push_may_be_changed_after_it_was_awaited(server):
    one, delta = net(server), torch.ones(SIZE)
    one.join()
    for _ in range(50):
        delta.fill_(1.0)
        await_(one.push(delta))
        delta.fill_(-1000.0)
    assert torch.equal(await_(one.pull()), torch.full((SIZE,), 50.0))
    one.close()


@pytest.mark.parametrize("token", ["", "another token", TOKEN + "x", TOKEN[:-1], "\ud800", None])
def test_without_the_token_nothing_is_answered(server, token):
    with pytest.raises(wire.Refused, match="does not carry its token"):
        Caller(address(server, token)).stop()
    with pytest.raises(PeerLost, match="does not carry its token"):
        CenterNet(0, 4, 0, lambda: address(server, token), [slice(0, SIZE)], torch.float32, Trace(0)).join()
    assert not server.center.members and Caller(address(server)).status()["stopped"] is False


def test_a_hello_that_comes_byte_by_byte_is_cut_short(server, monkeypatch):
    monkeypatch.setattr(serving, "_HELLO_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), 5) as slow:
        began = time.monotonic()
        slow.sendall((60_000).to_bytes(4, "little"))
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20 and not select.select([slow], [], [], 0.1)[0]:
                slow.sendall(b" ")
        assert time.monotonic() - began < 5
    assert Caller(address(server)).status()["stopped"] is False


NOTE = Note(1, 1, 8, 8.0, 1.0, 0.0, 0.1, 0.1)
HELLO = {"worker": 0, "attempt": 0, "type": "float32", "statistics": 0, "rows": ""}


def push(sequence=1, note=NOTE, count=SIZE, kind=wire.PUSH) -> bytes:
    return wire.ask(kind, sequence, note, 4 * count) + np.ones(count, np.float32).tobytes()


def messages():
    """Requests that carry the token and are wrong in some other way: (hello, what follows)."""
    good = push()
    return {
        "no worker": ({"attempt": 0, "type": "float32"}, good),
        "a worker that is not": (HELLO | {"worker": 99}, good),
        "a worker that is no number": (HELLO | {"worker": [1]}, good),
        "an attempt without end": (HELLO | {"attempt": 10**30}, good),
        "other numbers": (HELLO | {"type": "float64"}, good),
        "a type that is not": (HELLO | {"type": None}, good),
        "statistics that are not": (HELLO | {"statistics": 2**40}, good),
        "an action that is not": (HELLO | {"action": "rm"}, good),
        "a divergence of nobody": (HELLO | {"action": "diverged", "worker": None}, good),
        "an unknown message": (HELLO, bytes([99]) + good[1:]),
        "a message of the server": (HELLO, bytes([wire.CENTER]) + good[1:]),
        "a push ahead of its turn": (HELLO, push(5)),
        "a push of number zero": (HELLO, push(0)),
        "impossible steps": (HELLO, push(note=NOTE._replace(steps=-1))),
        "NaN for progress": (HELLO, push(note=NOTE._replace(epochs=float("nan")))),
        "points without end": (HELLO, push(note=NOTE._replace(points=float("inf")))),
        "too few numbers": (HELLO, push(count=SIZE - 1)),
        "too many numbers": (HELLO, push(count=SIZE + 1)),
        "far too many numbers": (HELLO, wire.ask(wire.PUSH, 1, NOTE, 2**62)),
        "fewer than no numbers": (HELLO, wire.ask(wire.PUSH, 1, NOTE, -4)),
        "no numbers": (HELLO, push(count=0)),
        "a pull with numbers": (HELLO, push(kind=wire.PULL)),
        "pushes elsewhere without end": (HELLO, wire.ask(wire.AGREE, 2**62)),
    }


@pytest.mark.parametrize("name", messages())
def test_malformed_messages_are_refused_and_change_nothing(server, name):
    hello, message = messages()[name]
    line = address(server).connect(0, hello, 5.0)
    line.write(message)
    with pytest.raises(wire.Refused):
        line.read_answer(wire.WELCOME)
        line.read_answer(wire.CENTER)
    line.close()
    nothing_has_happened(server)


def nothing_has_happened(server):
    assert server.center.version == 0 and not server.center.params.any()
    after = net(server, 1)
    after.join()
    await_(after.push(torch.ones(SIZE)))
    assert torch.equal(await_(after.pull()), torch.ones(SIZE))
    after.close()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x80\x04K\x00",
        b"\x02\x00\x00\x00[]",
        b"\x00\x80\x00\x00" + b"[" * 2**15,
    ],
    ids=["HTTP", "a hello of 4 GB", "a pickle", "a list", "a deep list"],
)
def test_who_speaks_another_language_is_refused(server, noise):
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        assert b"Error: " in connection.recv(4096)
    nothing_has_happened(server)


@pytest.mark.parametrize("length", [1, 4, 40, 200, 4000])
def test_half_a_push_is_not_merged(server, length):
    line = address(server).connect(0, HELLO, 5.0)
    line.read_answer(wire.WELCOME)
    line.write(push()[:length])
    line.close()
    nothing_has_happened(server)


def test_a_client_that_does_not_read_holds_up_nobody(server):
    """It asks for centers and never takes them: its thread in the server blocks, the others' do not."""
    slow = address(server).connect(0, HELLO | {"worker": 3}, 5.0)
    slow.read_answer(wire.WELCOME)
    asking = threading.Thread(target=lambda: flood(slow), daemon=True)
    asking.start()
    silent = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(20)]  # they do not even say hello
    one = net(server)
    one.join()
    began = time.monotonic()
    for _ in range(100):
        await_(one.push(torch.ones(SIZE)))
        await_(one.pull())
    assert time.monotonic() - began < 10
    one.close()
    slow.close()
    asking.join(5)
    for connection in silent:
        connection.close()


def flood(line):
    line.wait_at_most(1.0)
    with contextlib.suppress(OSError):
        for _ in range(100_000):
            line.write(wire.ask(wire.PULL))


def test_a_connection_too_many_ends_no_server(server, monkeypatch):
    start, failed = threading.Thread.start, []

    def fail_once(thread):
        if not failed and thread.name.endswith("(_meet)"):
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    lost = socket.create_connection(("127.0.0.1", server.port), 5)
    nothing_has_happened(server)
    assert failed
    lost.close()


@pytest.mark.parametrize("tls", [False, True])
def test_who_waits_at_the_door_longest_makes_way(tmp_path, monkeypatch, tls):
    monkeypatch.setattr(door, "_MOST", 8)
    certificate = certificates.make(HOST) if tls else None
    found = started(tmp_path, torch.zeros(SIZE), certificate)
    waiting = []
    for number in range(32):
        waiting.append(socket.create_connection((HOST, found.port), 5))
        if number == 0:
            Caller(Address((f"{HOST}:{found.port}",), TOKEN, certificate and certificate[0])).stop()  # it has been taken in
    Caller(Address((f"{HOST}:{found.port}",), TOKEN, certificate and certificate[0])).stop()
    assert [connection.recv(1) for connection in waiting[:24]] == [b""] * 24
    assert not select.select(waiting[25:], [], [], 0)[0]  # the caller took one place meanwhile
    for connection in waiting:
        connection.close()
    found.shutdown()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n", wire.answer(wire.WELCOME, 0, 0), wire.answer(wire.DONE, 2**40, 0)]
)
def test_a_server_that_talks_nonsense_is_not_believed(said):
    with socket.create_server((HOST, 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)
                connection.recv(4096)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        with pytest.raises(ConnectionError, match=r"it answered with kind|a text of"):
            Caller(Address((f"{HOST}:{listener.getsockname()[1]}",), TOKEN, None)).status()
        thread.join(5)


@pytest.mark.timeout(30)
def test_a_push_may_follow_a_pull_that_nobody_has_awaited(tmp_path):
    """Both are larger than what sockets hold: a worker that writes and a server that writes would wait for each other."""
    numbers = 5_000_000
    large = started(tmp_path, torch.zeros(numbers))
    one, delta = net(large, numbers=numbers), torch.ones(numbers)
    one.join()
    before = one.pull()
    first = one.exchange(delta)
    await_(one.push(delta))
    assert not await_(before).any()
    assert torch.equal(await_(first), delta)
    assert torch.equal(await_(one.pull()), 2 * delta)
    one.close()
    large.shutdown()


def test_a_server_that_is_another_is_not_trusted(tmp_path):
    ours, other = certificates.make(HOST), certificates.make(HOST)
    elsewhere = certificates.make("127.0.0.9")
    for number, (shown, trusted) in enumerate([(ours, other), (elsewhere, elsewhere)]):
        (tmp_path / str(number)).mkdir()
        found = started(tmp_path / str(number), torch.zeros(SIZE), shown)
        with pytest.raises(ssl.SSLCertVerificationError):
            Caller(Address((f"127.0.0.1:{found.port}",), TOKEN, trusted[0])).stop()
        Caller(Address((f"127.0.0.1:{found.port}",), TOKEN, ours[0])).stop() if shown is ours else None
        with pytest.raises((OSError, wire.Refused)):
            Caller(address(found)).stop()  # without TLS
        found.shutdown()


def test_a_certificate_may_be_trusted_itself(tmp_path):
    """Not only who signed it: `TLS(certificate, key)` without a root."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate, key = certificates.make(HOST)
    mine = x509.load_pem_x509_certificate(certificate)
    authority = ec.generate_private_key(ec.SECP256R1())
    signed = (
        x509.CertificateBuilder()
        .subject_name(mine.subject)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")]))
        .public_key(mine.public_key())
        .serial_number(1)
        .not_valid_before(mine.not_valid_before_utc)
        .not_valid_after(mine.not_valid_after_utc)
        .add_extension(mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
        .sign(authority, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    found = started(tmp_path, torch.zeros(SIZE), (signed, key))
    assert Caller(Address((f"127.0.0.1:{found.port}",), TOKEN, signed)).status()["joined"] == 0
    found.shutdown()


def test_it_listens_at_its_own_address_only(server):
    with socket.create_connection(("127.0.0.1", server.port), 2):
        pass
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), 2):
        pass


def test_an_attempt_that_was_replaced_is_told_so(server):
    old = net(server)
    old.join()
    await_(old.push(torch.ones(SIZE)))
    await_(old.pull())
    new = net(server, attempt=1)
    assert new.join() == 1
    assert new.sequence == 1
    with pytest.raises(Fenced):
        await_(old.push(torch.ones(SIZE)))
        await_(old.pull())
    await_(new.push(torch.ones(SIZE)))
    assert torch.equal(await_(new.pull()), torch.full((SIZE,), 2.0))
    new.close()


def test_an_attempt_goes_on_with_its_workers_statistics(tmp_path):
    normed, found = started(tmp_path, torch.zeros(SIZE), statistics=torch.ones(3)), []
    for attempt in range(3):
        one = net(normed, attempt=attempt)
        one.statistics, one.take_up = lambda attempt=attempt: torch.full((3,), 10.0 + attempt), found.append
        one.join()
        await_(one.push(torch.ones(SIZE)))
        one.close()
    assert [x.tolist() for x in found] == [[1] * 3, [10] * 3, [11] * 3]
    normed.shutdown()


# ---- whole runs ------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
Y = X[:, :3].argmax(1)


def mlp():
    return firesteel.models.MLP(6, 16, 3)


def fit(strategy, workers=2, server=None, **settings):
    settings = {"epochs": 10, "batch_size": 8, "optimizer": firesteel.SGD(lr=0.05), "progress": "none", **settings}
    on = settings.pop("on", None) or Local(workers=workers, threads=1, server=server or Server())
    return firesteel.train(settings.pop("model", mlp), (X, Y), strategy=strategy, on=on, **settings)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_push_is_merged_once_by_every_shard(shards):
    run = fit(Downpour(3), 2, Server(shards=shards))
    log = run.arrivals.to_pylist()
    for shard in range(shards):
        for worker in (0, 1):
            numbers = [e["sequence"] for e in log if (e["shard"], e["worker"], e["kind"]) == (shard, worker, "push")]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) == -(-230 // 3)
    assert run.metrics["validation_accuracy"] > 0.8
    assert [int(epoch) for epoch in run.history["epoch"].to_pylist()] == list(range(1, 11))


def test_tls_made_for_the_run():
    assert fit(Downpour(), 2, Server(tls=True, shards=2)).metrics["validation_accuracy"] > 0.8


def test_tls_with_a_certificate_of_ones_own(tmp_path):
    certificate, key = certificates.make("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    tls = firesteel.TLS(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert fit(Downpour(), 2, Server(tls=tls)).status == "finished"
    with pytest.raises(firesteel.UsageError, match="there is no file"):
        firesteel.TLS(str(tmp_path / "other.pem"), str(tmp_path / "key.pem"))


@dataclass(frozen=True)
class Slow:
    """Downpour(1) whose worker 1 takes its time; both begin when both are there."""

    folder: str
    seconds: float = 0.02
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        open(os.path.join(self.folder, f"there-{net.rank}"), "w").close()
        while not os.path.exists(os.path.join(self.folder, f"there-{1 - net.rank}")):
            threading.Event().wait(0.005)
        for _, batch in worker.steps():
            if net.rank == 1:
                threading.Event().wait(self.seconds)
            worker.step(worker.gradient(batch))
            await net.push(worker.params - center)
            center = worker.params = await net.pull()
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def worst_lead(run) -> int:
    """How many pushes a worker was ahead of the slowest one that was still at work, when it was given a center."""
    counts, active, worst = {}, set(), 0
    for e in run.arrivals.to_pylist():
        if e["kind"] == "join":
            active.add(e["worker"])
            counts.setdefault(e["worker"], 0)
        elif e["kind"] == "leave":
            active.discard(e["worker"])
        elif e["kind"] == "push":
            counts[e["worker"]] = e["sequence"]
        elif e["kind"] == "pull" and len(active) == 2:
            worst = max(worst, counts[e["worker"]] - min(counts[k] for k in active))
    return worst


@pytest.mark.parametrize("bound", [0, 3])
def test_a_bound_on_staleness_holds(bound, tmp_path):
    run = fit(Slow(str(tmp_path)), 2, Server(max_ahead=bound), epochs=1)
    assert worst_lead(run) <= bound
    pushes = [e for e in run.arrivals.to_pylist() if e["kind"] == "push"]
    assert max(e["staleness"] for e in pushes) <= 2 * bound + 1


def test_without_a_bound_the_fast_do_not_wait(tmp_path):
    assert worst_lead(fit(Slow(str(tmp_path)), 2, epochs=1)) > 5


def test_max_seconds_and_a_request_to_stop(tmp_path):
    run = fit(Downpour(), 2, epochs=None, max_seconds=0.5)
    assert run.status == "stopped" and 0.4 < run.history["seconds"].to_pylist()[-1] < 1.5
    thread = threading.Timer(1.0, lambda: firesteel.stop(tmp_path))
    thread.start()
    run = fit(Downpour(), 2, epochs=100_000, run_dir=tmp_path)
    assert run.status == "stopped"


def test_divergence_is_told_with_worker_staleness_and_remedy():
    with pytest.raises(
        firesteel.Diverged, match=r"Downpour diverged at push \d+ of worker \d, staleness \d+.*a window below 5"
    ) as e:
        fit(Downpour(), 2, Server(max_growth=5.0), optimizer=firesteel.SGD(lr=50.0), epochs=30)
    note = "\n".join(e.value.__notes__)
    assert "The last good model" in note
    path = note.split("firesteel.load('")[1].split("'")[0]
    weights = torch.cat([p.flatten() for p in firesteel.load(path).parameters()])
    assert torch.isfinite(weights).all() and torch.linalg.vector_norm(weights) < 60


def test_a_run_that_diverged_leaves_its_last_good_center(tmp_path):
    with pytest.raises(firesteel.Diverged):
        fit(Downpour(1), 2, Server(max_growth=5.0), optimizer=firesteel.SGD(lr=50.0), run_dir=tmp_path, checkpoint_steps=1)
    center = unpack((tmp_path / "center-0.safetensors").read_bytes())[0]["params"]
    last = torch.cat([p.detach().flatten() for p in firesteel.load(tmp_path / "last").parameters()])
    assert torch.equal(center, last) and torch.isfinite(center).all()


def explode(outputs, targets):
    value = torch.nn.functional.cross_entropy(outputs, targets)
    return value if value > 0.9 else value * float("nan")


def test_a_loss_that_is_no_number_rolls_back_too():
    with pytest.raises(firesteel.Diverged, match=r"worker \d.*the training loss became nan at step"):
        fit(Downpour(), 2, loss=explode, optimizer=firesteel.SGD(lr=0.2), epochs=50)


@dataclass(frozen=True)
class Struck:
    """Downpour(2) in which something happens to worker 1 at step 20, the first time."""

    how: str
    note: str
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step == 20 and net.rank == 1 and not os.path.exists(self.note):
                with open(self.note, "w") as file:
                    file.write(str(time.time()))
                if self.how == "raise":
                    {}["a key that is not there"]
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
            if step % 2 == 0 or worker.last(step):
                await net.push(worker.params - center)
                center = worker.params = await net.pull()
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def pushed_rows(run) -> dict[int, int]:
    found = {}
    for e in run.arrivals.to_pylist():
        if e["kind"] == "push" and not e["shard"]:
            found[e["worker"]] = found.get(e["worker"], 0) + e["rows"]
    return found


def test_a_killed_worker_is_started_again_and_no_push_counts_twice(tmp_path):
    run = fit(Struck("kill", str(tmp_path / "note")), 2, Server(shards=2))
    assert run.status == "finished" and (tmp_path / "note").exists()
    assert pushed_rows(run) == {0: 1800, 1: 1800} and run.timing["samples"] == 3600
    joins = [
        (e["worker"], e["attempt"], e["sequence"]) for e in run.arrivals.to_pylist() if e["kind"] == "join" and not e["shard"]
    ]
    assert (1, 1, 9) in joins  # nine pushes of two steps came before the kill at step 20
    strategy = Struck("kill", str(tmp_path / "note"))  # the note is there, so nobody is killed again
    assert fit(strategy, on=firesteel.Replay(run)).settings["replayed"] == "bit-equal"
    again = firesteel.train(
        mlp, (X, Y), strategy=Struck("kill", str(tmp_path / "note")), on=firesteel.Replay(run),
        epochs=10, batch_size=8, optimizer=firesteel.SGD(lr=0.05), progress="none",
    )  # fmt: skip
    assert again.settings["replayed"] == "different" or again.settings["replayed"] == "bit-equal"


def test_an_exception_on_a_worker_ends_the_run_and_is_told_once(tmp_path):
    with pytest.raises(firesteel.WorkerFailed) as caught:
        fit(Struck("raise", str(tmp_path / "note")), 2, epochs=5000)
    assert time.time() - float((tmp_path / "note").read_text()) < 3
    text = str(caught.value)
    assert text.count("Traceback (most recent call last)") == 1 and """{}["a key that is not there"]""" in text


def servers() -> list[int]:
    """Process numbers of servers: children of the nursery that listen."""
    from firesteel.nursery import Nursery

    tree = f"/proc/{Nursery.get().process.pid}/task/{Nursery.get().process.pid}/children"
    with open(tree) as file:
        return [int(pid) for pid in file.read().split()]


def kill_server() -> None:
    """From a worker: end the first child of the nursery, and wait until it is gone."""
    parent = os.getppid()
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        first = min(int(pid) for pid in file.read().split())
    os.kill(first, signal.SIGKILL)
    await_death(first)


def await_death(pid: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
            threading.Event().wait(0.005)


@dataclass(frozen=True)
class KillsServer:
    """Downpour(1) whose worker 0 kills the server at step 100, once."""

    note: str
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if step == 100 and net.rank == 0 and not os.path.exists(self.note):
                with open(self.note, "w") as file:
                    file.write(str(time.time()))
                kill_server()
            await net.push(worker.params - center)
            center = worker.params = await net.pull()
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def test_a_killed_server_is_a_clear_error(tmp_path):
    with pytest.raises(firesteel.ClusterError, match=r"server 0 of the center was ended by SIGKILL\. With run_dir"):
        fit(KillsServer(str(tmp_path / "note")), 2, epochs=2000)
    assert time.time() - float((tmp_path / "note").read_text()) < 15
    assert fit(Downpour(), 2, epochs=1).status == "finished"


@pytest.mark.filterwarnings("ignore:a server was lost and started again")
def test_a_killed_server_goes_on_from_its_snapshot(tmp_path):
    run = fit(KillsServer(str(tmp_path / "note")), 2, run_dir=tmp_path / "run", checkpoint_steps=20)
    assert run.status == "finished" and (tmp_path / "note").exists()
    assert run.metrics["validation_accuracy"] > 0.8
    last = {e["worker"]: e["sequence"] for e in run.arrivals.to_pylist() if e["kind"] == "push"}
    assert set(last.values()) == {230}  # worker 1 may have been through before
    with pytest.raises(firesteel.UsageError, match="the log is not whole"):
        fit(KillsServer(str(tmp_path / "note")), on=firesteel.Replay(tmp_path / "run"))


def test_what_went_with_a_lost_server_is_told(tmp_path):
    """No snapshot was due before it was killed at step 100."""
    with pytest.warns(UserWarning, match="130 of 230 steps are in the model"):
        run = fit(
            KillsServer(str(tmp_path / "note")), 1, run_dir=tmp_path / "run", checkpoint_steps=10**6, epochs=None, max_steps=230
        )
    assert run.history["samples"].to_pylist()[-1] < 230 * 8


@dataclass(frozen=True)
class KillsServerAtItsEnd:
    """Downpour(1) whose worker `who` kills the server: behind its last push, or, as worker 1, when worker 0 has ended."""

    note: str
    who: int
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        if net.rank < self.who:
            with open(self.note + ".part", "w") as file:
                file.write(str(os.getpid()))
            os.rename(self.note + ".part", self.note)
        elif self.who:
            while not os.path.exists(self.note):
                threading.Event().wait(0.005)
            with open(self.note) as file:
                await_death(int(file.read()))
            kill_server()
        for _, batch in worker.steps():
            worker.step(worker.gradient(batch))
            if net.rank == self.who == 0:
                await net.push(worker.params - center)
                kill_server()
            else:
                center = worker.params = await net.exchange(worker.params - center)
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def test_a_worker_that_has_left_is_in_a_snapshot(tmp_path):
    """Worker 0 is through when the server is killed, and could send nothing again."""
    run = fit(KillsServerAtItsEnd(str(tmp_path / "note"), 1), 2, run_dir=tmp_path / "run", checkpoint_steps=10**6, epochs=2)
    assert run.status == "finished" and run.history["samples"].to_pylist()[-1] == 2 * 360
    assert {e["worker"] for e in run.arrivals.to_pylist()} == {1}  # the log began anew with the server


def test_a_worker_whose_last_push_is_lost_as_it_leaves_sends_it_again(tmp_path):
    run = fit(KillsServerAtItsEnd(str(tmp_path / "note"), 0), 1, run_dir=tmp_path / "run", epochs=None, max_steps=1)
    assert run.history["samples"].to_pylist() == [8]


@pytest.mark.filterwarnings("ignore:a server was lost")  # some pushes may have come after the last snapshot
def test_a_server_that_is_lost_while_another_is_started_again_is_not_forgotten(tmp_path, monkeypatch):
    from firesteel.net.hosting import Hosts

    start, started_again = Hosts._start, []

    def strike(hosts, number):
        start(hosts, number)
        if number in hosts._pids:
            started_again.append(number)
            if len(started_again) == 1:
                os.kill(hosts._pids[1 - number], signal.SIGKILL)

    monkeypatch.setattr(Hosts, "_start", strike)
    run = fit(
        KillsServer(str(tmp_path / "note")), 2, Server(shards=2), run_dir=tmp_path / "run", checkpoint_steps=20, epochs=30
    )
    assert sorted(started_again) == [0, 1]
    assert run.status == "finished"
    for shard in (0, 1):
        events = [e for e in run.arrivals.to_pylist() if (e["shard"], e["kind"]) == (shard, "push")]
        assert max(e["sequence"] for e in events) == 690


def test_collectives_need_a_gang_and_pulls_a_server():
    @dataclass(frozen=True)
    class Confused:
        needs_seen: ClassVar[bool] = False

        async def run(self, worker, net):
            return await net.all_reduce(worker.params)

        def merge(self, center, push): ...

    with pytest.raises(firesteel.StrategyError, match="use pull and push"):
        fit(Confused())

    @dataclass(frozen=True)
    class NoMerge:
        async def run(self, worker, net):
            return await net.pull()

    with pytest.raises(firesteel.StrategyError, match="give the strategy a method `merge"):
        fit(NoMerge())


@dataclass(frozen=True)
class Wrong:
    """Downpour(1) that is wrong in some way at push 3."""

    how: str
    needs_seen: ClassVar[bool] = False

    async def run(self, worker, net):
        center = worker.params = await net.pull()
        for step, batch in worker.steps():
            worker.step(worker.gradient(batch))
            delta = worker.params - center
            if step == 3 and net.rank == 0:
                delta = delta.double() if self.how == "double" else delta
            center = worker.params = await net.exchange(delta)
        return center

    def merge(self, center, push):
        if self.how == "merge" and push.sequence == 3 and push.worker == 0:
            {}["a key that is not there"]
        center.add_(push.delta)


WORLDS = pytest.mark.parametrize("on", [Local(2, threads=1), Simulated(Cluster(2))], ids=["local", "simulated"])


@WORLDS
def test_an_exception_in_merge_is_the_strategys_and_told_once(on):
    with pytest.raises(firesteel.StrategyError, match=r"merge raised KeyError.*at push 3 of worker 0") as caught:
        fit(Wrong("merge"), on=on, epochs=1000)
    text = str(caught.value)
    assert text.count("Traceback (most recent call last)") == 1 and """{}["a key that is not there"]""" in text
    assert caught.value.__cause__ is None


@WORLDS
def test_what_is_no_delta_is_refused_at_the_verb(on):
    with pytest.raises(
        firesteel.StrategyError, match=r"net.exchange was given torch.float64 \[163\], but the center is torch.f"
    ):
        fit(Wrong("double"), on=on, epochs=1000)


def test_only_who_has_the_key_is_believed():
    store = HashStore()
    board = StoreBoard(store, "a run", "its key")
    board.put("stop", b"hurry")
    assert board.get("stop") == b"hurry" and board.get("started") is None
    for forged in (b"", b"hurry", b"x" * 40, seal("another key", "a run/board/stop", b"hurry"), store.get("a run/board/stop")):
        store.set("a run/board/started", forged)
        assert board.get("started") is None
    place, finder = "a run/servers/0/1", Finder("a run", 1, TOKEN, None)
    store.add("a run/servers/0/generation", 1)
    store.set(place, seal(TOKEN, place, b"127.0.0.1:80"))
    assert finder.find(store).locations == ("127.0.0.1:80",)
    store.set(place, b"127.0.0.1:81")
    with pytest.raises(firesteel.ClusterError, match="server 0 in the run's store was not written by this run"):
        finder.find(store)


def test_a_notice_may_be_longer_than_the_store_takes_at_once():
    store = serve_store("127.0.0.1")
    board = StoreBoard(store, "a run", "its key")
    for content in (b"a" * 20_000_003, b"b" * 9_000_000, b"short", b"", b"c" * 17_000_000):
        board.put("model", content)
        assert board.get("model") == content
    side = next(s for s in "ab" if store.check([f"a run/board/model/{s}/4"]))
    store.set(f"a run/board/model/{side}/4", b"d" * 222_784)
    assert board.get("model") is None


def test_a_request_to_stop_without_the_key_stops_nothing(monkeypatch):
    def serve(host):
        store = serve_store(host)
        store.set("of this test/board/stop", b"hurry")
        return store

    monkeypatch.setattr(sys.modules["firesteel.train"], "new_secret", lambda: "of this test")
    monkeypatch.setattr("firesteel.local.world.serve_store", serve)
    assert fit(Downpour(), epochs=2).status == "finished"


def test_early_stopping_is_refused():
    with pytest.raises(firesteel.UsageError, match="early stopping evaluates while workers wait"):
        fit(Downpour(), early_stopping=firesteel.EarlyStopping())


def test_fewer_rows_than_workers():
    run = firesteel.train(
        mlp, (X[:3], Y[:3]), strategy=Downpour(2), on=Local(workers=5, threads=1), validation=None, epochs=4, progress="none"
    )
    assert run.status == "finished" and sum(pushed_rows(run).values()) == 12
    assert run.history["epoch"].to_pylist()[-1] == 4


def test_a_resumed_run_goes_on_with_its_running_statistics(tmp_path):
    """The features' mean is 50; a tenth of an epoch alone would bring statistics that begin at 0 to less than 10."""
    settings = {
        "strategy": Downpour(), "on": Local(2, threads=1), "batch_size": 8, "run_dir": tmp_path, "progress": "none",
        "validation": None, "optimizer": firesteel.SGD(lr=0.01),
    }  # fmt: skip
    norm = lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))  # noqa: E731
    for more in ({"epochs": 3}, {"epochs": 3.1, "resume": True}):
        run = firesteel.train(norm, (X + 50, Y), **settings, **more)
        assert (run.model[0].running_mean > 45).all()
    assert run.history["samples"].to_pylist()[-1] > 1200


@WORLDS
def test_a_share_too_small_for_one_row_is_refused_before_the_first_step(on):
    with pytest.raises(firesteel.UsageError, match="no row was left for it; give a larger share"):
        fit(Downpour(), on=on, validation=0.001, epochs=10**9)


def test_a_share_too_small_for_one_row_throws_no_model_away(monkeypatch):
    """Where workers take turns, the last one says that there is none when others have been through."""

    def serve(host):
        store = serve_store(host)
        store.set("of this test/trained", b"")
        return store

    monkeypatch.setattr(sys.modules["firesteel.train"], "new_secret", lambda: "of this test")
    monkeypatch.setattr("firesteel.local.world.serve_store", serve)
    with pytest.warns(UserWarning, match="no row was left for it: the run has no scores"):
        run = fit(Downpour(), validation=0.001, epochs=2)
    assert run.status == "finished" and set(run.metrics) == {"train_loss"}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_that_was_stopped_goes_on(tmp_path, shards):
    """Not bit for bit, as the order of arrival is new; but no row is trained on twice and none is left out."""
    server = Server(shards=shards)
    first = fit(Downpour(2), 2, server, epochs=40, run_dir=tmp_path, checkpoint_steps=4, max_seconds=0.1)
    assert first.status == "stopped"
    with pytest.raises(firesteel.UsageError, match="batch_size=8, this call has batch_size=16"):
        fit(Downpour(2), 2, server, epochs=40, run_dir=tmp_path, resume=True, batch_size=16)
    second = fit(Downpour(2), 2, server, epochs=40, run_dir=tmp_path, checkpoint_steps=4, resume=True)
    assert second.status == "finished"
    assert second.history["epoch"].to_pylist()[-1] == 40
    assert second.history["samples"].to_pylist()[-1] == 360 * 40
    assert second.metrics["validation_accuracy"] > 0.8
    done = first.history["samples"].to_pylist()[-1]
    assert second.timing["samples"] == 360 * 40 - done  # those of this call
    assert second.timing["samples_per_second"] > second.timing["samples"] / second.timing["total_seconds"]
    rows = np.diff([done, *second.history["samples"].to_pylist()])
    losses = [e["loss_sum"] for e in second.arrivals.to_pylist() if e["kind"] == "push" and not e["shard"]]
    assert np.dot(rows, second.history["train_loss"].to_numpy()) == pytest.approx(sum(losses))
    with pytest.raises(firesteel.UsageError, match=r"holds a model of 163 parameters .* this call's has 83 .*"):
        fit(Downpour(2), 2, server, epochs=40, run_dir=tmp_path, resume=True, model=lambda: firesteel.models.MLP(6, 8, 3))
    with pytest.raises(firesteel.UsageError, match="begins where an earlier run had stopped"):
        fit(Downpour(2), on=firesteel.Replay(second), epochs=40, checkpoint_steps=4)
    with pytest.raises(firesteel.UsageError, match="holds no snapshot"):
        fit(Downpour(2), 2, server, run_dir=tmp_path / "elsewhere", resume=True)


def test_a_run_goes_on_from_another_folder(tmp_path):
    """What the new run's folder held is forgotten, what the old one's holds is left as it is."""
    old, new = tmp_path / "old", tmp_path / "new"
    version = lambda folder: unpack(Folder(str(folder)).get("center-0.safetensors") or b"")[1]["version"]  # noqa: E731
    for folder, epochs in ((old, 2), (new, 3)):
        fit(Downpour(2), epochs=epochs, run_dir=folder)
    before, other = (old / "center-0.safetensors").read_bytes(), version(new)
    run = fit(Downpour(2), epochs=4, run_dir=new, resume=old)
    assert run.history["samples"].to_pylist()[-1] == 4 * 360
    assert run.arrivals["version"].to_pylist()[0] == version(old) != other
    assert (old / "center-0.safetensors").read_bytes() == before and version(new) > other
    assert fit(Downpour(2), epochs=5, resume=new).history["samples"].to_pylist()[-1] == 5 * 360


def test_a_resume_from_nowhere_or_on_other_rows_is_refused(tmp_path):
    with pytest.raises(firesteel.UsageError, match="resume=True needs run_dir"):
        fit(Downpour(), resume=True)
    fit(Downpour(), epochs=1, run_dir=tmp_path)
    settings = {"strategy": Downpour(), "on": Local(2, threads=1), "batch_size": 8, "progress": "none", "resume": tmp_path}
    with pytest.raises(firesteel.UsageError, match="rows are not those of the run to resume"):
        firesteel.train(mlp, (X + 1, Y), **settings)


def test_a_run_that_diverged_is_not_replayed(tmp_path):
    with pytest.raises(firesteel.Diverged):
        fit(Downpour(), 2, loss=explode, optimizer=firesteel.SGD(lr=0.2), epochs=50, run_dir=tmp_path)
    with pytest.raises(firesteel.UsageError, match="a run that diverged"):
        fit(Downpour(), loss=explode, optimizer=firesteel.SGD(lr=0.2), epochs=50, on=firesteel.Replay(tmp_path))


def test_epochs_and_seconds_together_are_replayed():
    settings = {"epochs": 3, "max_seconds": 100.0}
    run = fit(Downpour(4), 2, **settings)
    assert fit(Downpour(4), on=firesteel.Replay(run), **settings).settings["replayed"] == "bit-equal"


def test_replaying_leaves_the_run_folder_as_it_was(tmp_path):
    fit(Downpour(4), 2, run_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "run.json"}
    again = fit(Downpour(4), on=firesteel.Replay(tmp_path), run_dir=tmp_path)
    assert again.settings["replayed"] == "bit-equal"
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "run.json"}
    assert before == after
