"""Parts of a network on workers become one file and a network in it, number by number, and nothing is there twice."""

from __future__ import annotations

import copy
import functools
import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from gangs import CONTEXT
from halves import WORKERS, Half, Marking, expected, member, network
from torch import nn

import firesteel
from firesteel.checkpoint import Folder, StoreBoard
from firesteel.data.source import resolve
from firesteel.flat import flatten, statistics_of
from firesteel.job import Job
from firesteel.net.meeting import serve_store
from firesteel.outcome import assemble, rescue
from firesteel.parts import assembly
from firesteel.parts.assembly import Replicas, fingerprint, hand_over, mapped, write
from firesteel.parts.cuts import Cut, Piece
from firesteel.sim import world as simulated


class Whole(nn.Module):
    """All that a network may hold: tied, frozen and channels_last parameters, buffers of many types, one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.lstm = nn.LSTM(6, 4)
        self.norm = nn.BatchNorm1d(6, dtype=torch.bfloat16).requires_grad_(False)
        self.out = nn.Linear(6, 10)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("short", torch.randn(5, 3).half())
        self.register_buffer("wide", torch.randn(7).double(), persistent=False)
        self.register_buffer("mask", torch.rand(4, 6) > 0.5)
        self.register_buffer("none", torch.empty(0, 3))

    def forward(self, tokens):
        return self.out(self.embed(tokens)) * self.scale


CUTS = {  # by dimension and by worker; what is not here lies whole on one worker
    "embed.weight": (0, [((0, 1), (7, 10)), ((1, 7),)]),
    "conv.weight": (1, [((0, 1), (2, 3)), ((1, 2), (3, 4))]),
    "lstm.weight_hh_l0": (0, [((0, 2), (4, 6), (8, 10), (12, 14)), ((2, 4), (6, 8), (10, 12), (14, 16))]),
    "lstm.weight_ih_l0": (0, [((0, 2), (4, 6), (8, 10), (12, 14)), ((2, 4), (6, 8), (10, 12), (14, 16))]),
    "short": (1, [((0, 0),), ((0, 3),)]),
    "mask": (1, [((0, 5),), ((5, 6),)]),
    "norm.running_mean": (0, [((0, 2),), ((2, 6),)]),
}
SHARED = ("scale", "norm.num_batches_tracked", "norm.running_var")


def part_of(whole: nn.Module, rank: int) -> nn.Module:
    part, pieces = nn.Module(), {}
    for number, (name, x) in enumerate([*whole.named_parameters(), *whole.named_buffers()]):
        cut = Cut(tuple(x.shape))
        if name in CUTS:
            cut = Cut(tuple(x.shape), CUTS[name][0], CUTS[name][1][rank])
        elif name not in SHARED and number % 2 != rank:
            continue
        own = name.replace(".", "_")
        piece = cut.take(x.detach())
        if isinstance(x, nn.Parameter):
            part.register_parameter(own, nn.Parameter(piece, x.requires_grad))
        else:
            part.register_buffer(own, piece)
        pieces[own] = Piece("out.weight" if name == "embed.weight" and rank else name, cut, name in SHARED)
    part.pieces = pieces
    return part


def handed(parts: list[nn.Module]) -> list[pa.RecordBatch]:
    batches = []
    for rank, part in enumerate(parts):
        params, statistics = flatten(part)[0].clone(), statistics_of(part).float()
        for p in part.parameters():
            if p.requires_grad:
                p.data.fill_(-1.0)  # what is handed over are the published parameters, not those of now
        batches += hand_over(rank, part, params, statistics, skip_shared=rank > 0)
    return batches


def on_meta(make=Whole) -> nn.Module:
    with torch.device("meta"):
        return make()


@pytest.fixture
def whole() -> nn.Module:
    _ = torch.manual_seed(1)
    return Whole()


@pytest.mark.parametrize("chunk_bytes", [1, 70, 2**25])
def test_parts_make_up_the_whole(whole, tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(assembly, "CHUNK_BYTES", chunk_bytes)
    batches = handed([part_of(whole, 0), part_of(whole, 1)])
    if chunk_bytes == 1:
        table = pa.Table.from_batches(batches).combine_chunks()  # as Spark may hand them on
        batches = table.to_batches(max_chunksize=7)
    write(batches, on_meta(), tmp_path / "network.safetensors")
    assert os.listdir(tmp_path) == ["network.safetensors"]
    network = mapped(on_meta(), tmp_path / "network.safetensors")
    for name, x in [*whole.named_parameters(), *whole.named_buffers()]:
        found = functools.reduce(getattr, name.split("."), network)
        assert found.dtype == x.dtype and found.shape == x.shape and torch.equal(found, x), name
        assert isinstance(found, nn.Parameter) == isinstance(x, nn.Parameter) and found.requires_grad == x.requires_grad
    assert network.out.weight is network.embed.weight and "wide" not in network.state_dict()
    assert not any(m.training for m in network.modules())
    assert torch.equal(network(torch.arange(3)), whole(torch.arange(3)))
    rows = torch.randn(2, 3, 6)
    assert torch.equal(network.lstm(rows)[0], whole.lstm(rows)[0])
    stored = safetensors.torch.load_file(tmp_path / "network.safetensors")  # others can read it too
    assert torch.equal(stored["conv.weight"], whole.conv.weight) and "out.weight" not in stored


def test_no_chunk_is_larger_than_asked(whole, monkeypatch):
    monkeypatch.setattr(assembly, "CHUNK_BYTES", 100)
    found = [data.size for kind, _, data in assembly.payloads(handed([part_of(whole, 0)])) if kind != "pieces"]
    assert max(found) <= 100 < sum(found) and len(found) == 20


def refused(parts: list[nn.Module], path: Path, match: str, batches: list[pa.RecordBatch] | None = None) -> None:
    with pytest.raises(firesteel.StrategyError, match=match):
        write(handed(parts) if batches is None else batches, on_meta(), path / "network.safetensors")
    assert not os.listdir(path)


def test_what_does_not_make_up_the_whole_is_refused(whole, tmp_path):
    one, two = part_of(whole, 0), part_of(whole, 1)
    refused([one], tmp_path, r"'embed.weight', \[10, 6\].*workers own \(\(0, 1\), \(7, 10\)\) of dimension 0")
    both = part_of(whole, 0)
    both.pieces["embed_weight"] = replace(both.pieces["embed_weight"], cut=Cut((10, 6), 0, ((0, 2), (8, 10))))
    refused([both, two], tmp_path, "'embed.weight'.*each number once")
    missing = part_of(whole, 1)
    del missing.pieces["lstm_bias_ih_l0" if "lstm_bias_ih_l0" in missing.pieces else "lstm_bias_hh_l0"]
    refused([one, missing], tmp_path, "'lstm.bias_.h_l0'.*workers own nothing")
    twice = part_of(whole, 1)
    twice.pieces["scale"] = replace(twice.pieces["scale"], shared=False)
    refused([one, twice], tmp_path, "'scale'.*all of it; all of it")
    other = part_of(whole, 1)
    other.pieces["scale"] = Piece("scales", Cut(()))
    refused([one, other], tmp_path, "worker 1 handed over a part of 'scales'.*none of that name")
    wide = part_of(whole, 1)
    wide.short = wide.short.float()
    refused([one, wide], tmp_path, r"part of 'short' \[5, 3\], F32; the network has one of \[5, 3\], torch.float16")
    short = part_of(whole, 1)
    short.pieces["short"] = Piece("short", Cut((5, 3), 1, ((1, 3),)))
    refused([one, short], tmp_path, r"worker 1 has a part of 'short' of shape \[5, 3\].*by its cut the shape is \[5, 2\]")
    batches = handed([one, part_of(whole, 1)])
    refused([], tmp_path, "worker 1 handed over 0 of the .* numbers of its part of", batches[:-1])
    with pytest.raises(firesteel.StrategyError, match="ensemble"):
        _ = list(hand_over(0, one, torch.zeros(2, 5), torch.zeros(1), skip_shared=False))


def test_a_mapped_network_is_one_like_any_other(whole, tmp_path):
    path = tmp_path / "network.safetensors"
    write(handed([part_of(whole, 0), part_of(whole, 1)]), on_meta(), path)
    before = path.read_bytes()
    network = mapped(on_meta(), path)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.arange(3)).sum().backward()
    optimizer.step()
    network.norm.running_mean.add_(1)
    assert not torch.equal(network.embed.weight, whole.embed.weight)
    assert path.read_bytes() == before and torch.equal(mapped(on_meta(), path).embed.weight, whole.embed.weight)
    network = mapped(on_meta(), path)
    data = cloudpickle.dumps(network)
    assert len(data) < 3 * len(before)
    path.unlink()
    for twin in (cloudpickle.loads(data), copy.deepcopy(network), mapped_to_double(network)):
        assert torch.allclose(twin(torch.arange(3)).float(), whole(torch.arange(3)))
        assert twin.out.weight is twin.embed.weight


def mapped_to_double(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(torch.float64)


def test_replicas_own_the_same_pieces():
    prints = [fingerprint(Half(rank % 2).pieces) for rank in range(4)]
    replicas = Replicas(tuple(prints))
    assert [replicas.ranks(rank) for rank in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [replicas.hands_over(rank) for rank in range(4)] == [True, True, False, False]


# ---- runs --------------------------------------------------------------------------------------------------------------


def job_of(run_dir: str | None, hurried: bool = False) -> tuple[Job, object]:
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(32, 4, generator=generator).numpy(), torch.arange(32).remainder(2).numpy()
    source, _ = resolve(data, "features", "label", None, None, "class")
    settings = {"strategy": "Marking()", "batch_size": 4, "seed": 0}
    job = Job(
        network, Marking(hurried), source.columns, "cross_entropy", firesteel.SGD(lr=0.1), run_dir=run_dir, settings=settings
    )
    return replace(
        job, batch_size=4, validation=0.25, epochs=2, threads=1, secret=secrets.token_hex(8), key=secrets.token_hex(8)
    ), source


def check_run(batches: list[pa.RecordBatch], job: Job, tmp_path: Path, hurried: bool = False) -> None:
    meta = on_meta(network)
    example = (torch.zeros(2, 4),)
    run = assemble(batches, job, meta, firesteel.Local(workers=WORKERS), time.time(), time.perf_counter(), example)
    whole = expected(steps=4)
    assert {name: x.tolist() for name, x in run.model.state_dict().items()} == {n: x.tolist() for n, x in whole.items()}
    assert [row["step"] for row in run.history.to_pylist()] == [2, 4]
    assert run.settings["hurried"] == hurried and ("validation_loss" in run.history.column_names) != hurried
    rows = torch.randn(5, 4)
    answer = run.model(rows)
    assert torch.isfinite(answer).all()
    assert run.evaluate((rows.numpy(), torch.zeros(5, dtype=torch.long).numpy()))["loss"] > 0
    _ = run.save(tmp_path / "saved")
    assert torch.equal(firesteel.load(tmp_path / "saved")(rows), answer)
    assert torch.equal(cloudpickle.loads(cloudpickle.dumps(run.model))(rows), answer)


@pytest.mark.parametrize("hurried", [False, True])
def test_every_worker_of_a_gang_hands_over_its_part(tmp_path, hurried):
    folder = str(tmp_path / "run")
    job, source = job_of(folder, hurried)
    Folder(folder).put("run.json", json.dumps({"secret": job.secret}).encode())
    store, data = serve_store("127.0.0.1"), cloudpickle.dumps((job, source))
    places = [str(tmp_path / f"result-{rank}") for rank in range(WORKERS)]
    members = [CONTEXT.Process(target=member, args=(r, store.port, data, places[r]), daemon=True) for r in range(WORKERS)]
    for each in members:
        each.start()
    for each in members:
        each.join(60)
    assert [each.exitcode for each in members] == [0] * WORKERS
    batches = []
    for place in places:
        with pa.memory_map(place) as file, pa.ipc.open_stream(file) as reader:
            batches += list(reader)
        os.unlink(place)
    assert {rank for kind, rank, _ in assembly.payloads(batches) if kind == "pieces"} == {0, 1}
    board = StoreBoard(store, job.secret, job.key)
    assert board.get("model.safetensors") is None and board.get("started") is not None
    check_run(batches, job, tmp_path, hurried)
    assert "network.safetensors" in os.listdir(folder)
    failed = firesteel.Diverged("numbers")
    rescue(failed, board, job, on_meta(network), folder)
    assert failed.__notes__ == [
        f"The newest point to resume from is that of step 4: train(..., resume={folder!r}) goes on there."
    ]


def test_every_worker_of_a_simulated_gang_hands_over_its_part(tmp_path):
    job, source = job_of(None)
    cluster = firesteel.Cluster(workers=WORKERS)
    batches, _ = simulated.run(job, source, firesteel.Simulated(cluster), lambda board: None)
    check_run(batches, job, tmp_path)


def test_what_is_left_of_a_network_in_parts(tmp_path):
    job, _ = job_of(None)
    for folder, match in [
        (None, "none was given: nothing of it is left"),
        (str(tmp_path), "No point to resume from had been kept in"),
    ]:
        failed = firesteel.Diverged("numbers")
        rescue(failed, Folder(str(tmp_path)), job, on_meta(network), folder)
        assert match in failed.__notes__[0]


# ---- memory ------------------------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys, tempfile
from pathlib import Path
import pyarrow as pa
import torch
from torch import nn
from firesteel.checkpoint import Folder, Points
from firesteel.parts.assembly import hand_over, mapped, write
from firesteel.parts.cuts import Cut, Piece
from firesteel.results import RESULT, Kept, digest

torch.set_num_threads(1)
MB = 2**20
Make = lambda rows: nn.Sequential(nn.Linear(1024, rows, bias=False))

def said(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def limit(more):  # of heap and private mappings that can be written to: what is asked for beyond it is a MemoryError
    resource.setrlimit(resource.RLIMIT_DATA, (said("VmData") + more, resource.RLIM_INFINITY))

part = Make(16 * 2048)  # 128 MB
part.pieces = {"0.weight": Piece("0.weight", Cut((2 * 16 * 2048, 1024), 0, ((0, 16 * 2048),)))}
params = part[0].weight.detach().view(-1)
_ = params.fill_(1.0)
nothing = torch.empty(0)
for _ in hand_over(0, part, params[:], nothing, False):
    break  # what the first call loads is not counted
limit(80 * MB)
kept, folder = Kept(), Path(sys.argv[1])
kept.add(params, nothing, {})
digest(params)
Points(Folder(str(folder))).write(1, 0, {"params": params}, {})
files = []
for rank in range(2):
    part.pieces = {"0.weight": Piece("0.weight", Cut((2 * 16 * 2048, 1024), 0, ((rank * 16 * 2048, (rank + 1) * 16 * 2048),)))}
    with pa.OSFile(str(folder / str(rank)), "wb") as sink, pa.ipc.new_stream(sink, RESULT) as out:
        for batch in hand_over(rank, part, params, nothing, False):
            out.write_batch(batch)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
before = said("RssAnon")
_, again, _ = next(kept.read(torch.float32, 0))
assert max(said("RssAnon") - before for _ in hand_over(0, part, again, nothing, False)) < 80 * MB
del again, params, part

batches = []
for rank in range(2):
    with pa.memory_map(str(folder / str(rank))) as file, pa.ipc.open_stream(file) as reader:
        batches += list(reader)
    (folder / str(rank)).unlink()
with torch.device("meta"):
    whole = Make(2 * 16 * 2048)
before = said("RssAnon")
limit(80 * MB)
write(batches, whole, folder / "network")
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
network = mapped(whole, folder / "network")
assert float(network[0].weight.detach().sum(dtype=torch.float64)) == 2 * 16 * 2048 * 1024
assert said("RssAnon") - before < 80 * MB
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured by Linux's own figures")
def test_neither_side_holds_a_part_twice(tmp_path):
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
