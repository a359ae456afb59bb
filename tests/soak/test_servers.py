"""Long tests of runs with a server: kills and stops at random moments, and a million hostile requests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from struck import Announced, X, Y, every_row_once, fit, strike, workers_in

import firesteel
from firesteel import AGN, Downpour, Local, Server
from firesteel.nursery import Nursery

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

RNG = np.random.default_rng(time.time_ns())


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def server_of(folder: Path) -> int:
    """The nursery's child that is no worker."""
    nursery = Nursery.get().process.pid
    children = Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()
    workers = {pid for rank in (0, 1) for pid in workers_in(folder, rank)}
    return min(int(pid) for pid in children if int(pid) not in workers)


@pytest.mark.parametrize("shards", [1, 2])
def test_twenty_workers_killed_are_started_again(shards, tmp_path):
    on = Local(workers=2, threads=1, server=Server(shards=shards))
    calm = fit((X, Y), Downpour(), on).metrics["validation_accuracy"]
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        victim = int(RNG.integers(2))
        thread = strike(folder, victim, float(RNG.uniform(0, 0.3)), kill)
        run = fit((X, Y), Announced(Downpour(), str(folder)), on)
        thread.join()
        every_row_once(run, 2, shards, 60)
        assert run.metrics["validation_accuracy"] > calm - 0.1


@pytest.mark.filterwarnings("ignore:a server was lost and started again")
def test_twenty_servers_killed_are_clear_errors_or_go_on(tmp_path):
    on = Local(workers=2, threads=1)
    went_on = 0
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        run_dir = tmp_path / f"run-{attempt}" if attempt % 2 else None
        struck = []

        def blow(_: int, folder=folder, struck=struck) -> None:
            struck.append(time.monotonic())
            kill(server_of(folder))

        thread = strike(folder, 0, float(RNG.uniform(0, 0.3)), blow)
        strategy = Announced(Downpour(), str(folder))
        if run_dir is None:
            with pytest.raises(firesteel.ClusterError, match="server 0 of the center was ended by SIGKILL"):
                fit((X, Y), strategy, on, epochs=100_000)
            assert time.monotonic() - struck[0] < 15
        else:
            run = fit((X, Y), strategy, on, epochs=100, run_dir=run_dir, checkpoint_steps=50)
            went_on += run.status == "finished" and run.metrics["validation_accuracy"] > 0.8
        thread.join()
    assert went_on == 10


def test_twenty_workers_stopped_for_ten_seconds_hold_up_nobody(tmp_path):
    """Ten at a time would share two cores; so each waits its ten seconds while the other worker goes on."""
    on = Local(workers=2, threads=1)
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()

        def blow(pid: int) -> None:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(10)
            os.kill(pid, signal.SIGCONT)

        thread = strike(folder, 1, float(RNG.uniform(0, 0.1)), blow)
        run = fit((X, Y), Announced(AGN(), str(folder)), on, epochs=40)
        thread.join()
        pushes = [e for e in run.arrivals.to_pylist() if e["kind"] == "push"]
        last = {w: max(e["seconds"] for e in pushes if e["worker"] == w) for w in (0, 1)}
        assert last[1] > 9 > last[0], last  # worker 0 was through long before worker 1 went on
        every_row_once(run, 2, 1, 40)


PROGRAM = """
import os, sys, time, json
sys.path.insert(0, sys.argv[2])
os.environ["PYSPARK_PYTHON"] = sys.executable
from pathlib import Path
import numpy as np, pyarrow as pa
from pyspark.sql import SparkSession
from struck import X, Y, Announced, every_row_once, fit, strike
from test_servers import kill
import firesteel

spark = (SparkSession.builder.master(sys.argv[1]).config("spark.ui.enabled", "false").config("spark.log.level", "OFF")
         .config("spark.ui.showConsoleProgress", "false").config("spark.executorEnv.PYTHONPATH", sys.argv[2]).getOrCreate())
frame = spark.createDataFrame(pa.table({"features": list(X), "label": Y})).cache()
frame.count()
rng, good = np.random.default_rng(), []
for attempt in range(20):
    folder = Path("kills", str(attempt))
    folder.mkdir(parents=True)
    thread = strike(folder, int(rng.integers(2)), float(rng.uniform(0, 0.3)), kill)
    run = fit(frame, Announced(firesteel.Downpour(), str(folder.absolute())), firesteel.Spark(workers=2))
    thread.join()
    every_row_once(run, 2, 1, 60)
    good.append(run.metrics["validation_accuracy"])
print(json.dumps(good))
spark.stop()
"""


@pytest.mark.spark
@pytest.mark.parametrize("master", ["local[2,4]", "local-cluster[2,1,2048]"])
def test_twenty_workers_killed_on_spark(master, tmp_path):
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, master, here], capture_output=True, text=True, cwd=tmp_path, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    good = json.loads(done.stdout.splitlines()[-1])
    assert len(good) == 20 and min(good) > 0.75, good


# ---- hostile requests ------------------------------------------------------------------------------------------------

HOSTILE = """
import json, socket, sys
sys.path.insert(0, sys.argv[4])
import numpy as np
from firesteel.net import wire
from firesteel.net.center import Note
from firesteel.net.client import Address

location, token, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
port = int(location.rpartition(":")[2])
rng = np.random.default_rng()
done = refused = 0


def told(token, what, message=b""):
    line = Address((location,), token, None).connect(0, what, 20.0)
    try:
        line.write(message)
        if "action" not in what:
            line.read_answer(wire.WELCOME)
        while True:
            line.read_text(line.read_answer(wire.DONE)[0])
    finally:
        line.close()


while done < count:
    done += 1
    kind = int(rng.integers(100))
    try:
        if kind < 90:  # no token, or a wrong one
            action = ("stop", "finish", "diverged", "status")[kind % 4]
            told(rng.bytes(16).hex() if kind % 2 else "", {"action": action, "why": rng.bytes(40).hex()})
        elif kind < 92:  # the token, and a request that lacks what belongs to it
            told(token, {"action": "diverged", rng.bytes(8).hex(): rng.bytes(40).hex()})
        elif kind < 94:  # the token, and an action that is not
            told(token, {"action": rng.bytes(8).hex()})
        elif kind < 95:  # a stream of noise, straight into the socket
            with socket.create_connection(("127.0.0.1", port), 5) as raw:
                raw.sendall(rng.bytes(200))
            raise OSError
        else:  # streams as a worker that is not of this run, or with numbers of another size
            worker = int(rng.integers(1, 50))
            numbers = rng.bytes(4 * int(rng.integers(1, 300)))
            note = wire.ask(wire.PUSH, 1, Note(1, 1, 8, 8.0, 1.0, 0.0, 0.1, 0.1), len(numbers))
            note = (note[: int(rng.integers(len(note)))], note, bytes([int(rng.integers(256))]) + note[1:])[kind % 3]
            told(token, {"worker": worker, "attempt": 0, "type": "float32", "statistics": 0, "rows": ""}, note + numbers)
    except (OSError, wire.Refused):
        refused += 1
print(json.dumps({"done": done, "refused": refused}))
"""


def test_a_million_hostile_requests_change_nothing(tmp_path, monkeypatch):
    """One worker, so that the run is the same every time: what it learns must be what it learns in peace."""
    on = Local(workers=1, threads=1)
    settings = {"epochs": None, "max_steps": 400, "optimizer": firesteel.SGD(lr=0.03)}

    class Patient:
        """Downpour(1) that goes on, very slowly, until a file is there: its last steps come after the attack."""

        needs_seen = False

        def __repr__(self) -> str:
            return "Patient()"

        async def run(self, worker, net):
            center = worker.params = await net.pull()
            for step, batch in worker.steps():
                worker.step(worker.gradient(batch))
                center_before = center
                if step == 200 and not os.path.exists(str(tmp_path / "over")):
                    open(str(tmp_path / "half"), "w").close()
                    while not os.path.exists(str(tmp_path / "over")):
                        threading.Event().wait(0.2)
                center = worker.params = await net.exchange(worker.params - center_before)
            return center

        def merge(self, center, push):
            center.add_(push.delta)

    (tmp_path / "over").touch()
    calm = fit((X, Y), Patient(), on, **settings)
    (tmp_path / "over").unlink()
    found = {}

    def attack() -> None:
        from firesteel.net import hosting

        while not (tmp_path / "half").exists() or "address" not in found:
            time.sleep(0.05)
        address = found["address"]
        assert hosting is not None
        nursery = Nursery.get().process.pid
        server = min(int(pid) for pid in Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split())
        resident = lambda: int(Path(f"/proc/{server}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
        root = str(Path(firesteel.__file__).parents[1])
        counts, sizes = [], []
        for _ in range(5):  # a fifth at a time, to look at the memory in between
            here = [
                subprocess.Popen(
                    [sys.executable, "-c", HOSTILE, address.locations[0], address.token, "100000", root],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                for _ in range(2)
            ]
            counts += [json.loads(p.communicate()[0].splitlines()[-1]) for p in here]
            sizes.append(resident())
        found["counts"], found["sizes"] = counts, sizes
        (tmp_path / "over").touch()

    from firesteel.net import hosting

    plain = hosting.Finder.find

    def find(self, store):
        found["address"] = plain(self, store)
        return found["address"]

    monkeypatch.setattr(hosting.Finder, "find", find)
    thread = threading.Thread(target=attack)
    thread.start()
    run = fit((X, Y), Patient(), on, **settings)
    thread.join()
    assert sum(c["done"] for c in found["counts"]) == 1_000_000 == sum(c["refused"] for c in found["counts"])
    assert found["sizes"][-1] - found["sizes"][0] < 32 * 2**20, found["sizes"]
    a, b = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in (calm, run))
    assert torch.equal(a, b)
    assert {e["worker"] for e in run.arrivals.to_pylist() if e["kind"] == "push"} == {0}
    print(found["counts"], found["sizes"])
