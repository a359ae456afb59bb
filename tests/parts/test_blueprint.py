"""A blueprint gives the numbers that the network would have had, without ever holding them all."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from firesteel import UsageError, models, randomness
from firesteel.parts.blueprint import Blueprint
from firesteel.parts.cuts import Cut, Piece, shares


def tensors(module):
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def bits(x):
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def check(build, seed=3, whole=False):
    """Every tensor, in one go and in three parts, is bit-equal to that of the network built for real."""
    blueprint = Blueprint.of(build, seed)
    assert blueprint.whole is whole
    before = torch.get_rng_state()
    empty = tensors(blueprint.module)
    filled = {name: torch.full_like(x, 7, device="cpu") for name, x in empty.items()}
    blueprint.fill((x, Piece(name, Cut(tuple(x.shape)))) for name, x in filled.items())
    cuts = [
        (name, Cut(tuple(x.shape), dim, (part, (0, 1))))
        for name, x in empty.items()
        for dim, size in enumerate(x.shape)
        for part in shares(size, 3)
    ]
    parts = [torch.full(cut.shape, 7, dtype=empty[name].dtype) for name, cut in cuts]
    blueprint.fill((x, Piece(*at)) for x, at in zip(parts, cuts, strict=True))
    assert torch.equal(torch.get_rng_state(), before)

    randomness.initialise(seed)
    module = build()
    real = tensors(module)
    assert list(real) == list(empty)
    assert {n: m.training for n, m in module.named_modules()} == {n: m.training for n, m in blueprint.module.named_modules()}
    for name, x in real.items():
        meta = empty[name]
        assert meta.device.type == "meta"
        assert (type(meta), meta.dtype, meta.shape, meta.stride(), meta.requires_grad) == (
            type(x), x.dtype, x.shape, x.stride(), x.requires_grad
        )  # fmt: skip
        assert torch.equal(bits(filled[name]), bits(x)), name
    for (name, cut), part in zip(cuts, parts, strict=True):
        assert torch.equal(bits(part), bits(cut.take(real[name].detach()))), (name, cut)
    for one in real:
        for other in real:
            assert (real[one] is real[other]) == (empty[one] is empty[other])
    return blueprint


class Own(nn.Module):
    """Parameters and buffers that a function makes."""

    def __init__(self, make) -> None:
        super().__init__()
        with torch.no_grad():
            for name, x in make().items():
                if isinstance(x, nn.Parameter | nn.Module):
                    setattr(self, name, x)
                else:
                    self.register_buffer(name, x, persistent=name != "passing")


NETWORKS = {
    "mlp": lambda: models.MLP(20, 33, 17, 5, dropout=0.1),
    "lenet": models.LeNet,
    "vgg": lambda: models.VGG(11, width=0.125),
    "rnn": lambda: models.RNNClassifier(12, 16, 9, layers=2),
    "lstm": lambda: models.LSTMClassifier(12, 16, 9),
    "char": lambda: models.CharLSTM(30, 16),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(5), nn.InstanceNorm2d(8, affine=True)
    ),
    "attention": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
    "padded": lambda: nn.Embedding(10, 4, padding_idx=3),
    "double": lambda: models.MLP(6, 5, 4).double(),
    "half": lambda: models.MLP(6, 5, 4).to(torch.bfloat16),
    "moved": lambda: models.LeNet().to("cpu").to(device=torch.device("cpu"), dtype=torch.float64).cpu(),
    "channels_last": lambda: models.LeNet().to(memory_format=torch.channels_last),
    "eval": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).eval(),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(5, 5)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_networks(build):
    check(build)


def tied():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    net[1].weight = net[0].weight
    return net


def scaled():
    net = models.MLP(6, 5, 4)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.1)
        net.layers[0].weight[1:3] += torch.randn(2, 6)
        net.layers[2].weight[:, ::2].normal_(std=2)
        net.layers[2].bias.data *= 2
        torch._foreach_mul_(list(net.parameters()), 3.0)
        net.layers[0].weight.copy_(net.layers[0].weight.flip(0))
    return net


def frozen():
    return models.LeNet().requires_grad_(False)


def replaced():
    net = nn.Linear(4, 4)
    net.weight.data = torch.eye(4) + torch.rand(4, 4)
    net.bias = nn.Parameter(net.weight[0].detach().clone())
    return net


def own(**make):
    return partial(Own, lambda: {name: f() for name, f in make.items()})


BUILDS = {
    "tied": tied,
    "scaled": scaled,
    "frozen": frozen,
    "replaced": replaced,
    "orthogonal": own(w=lambda: nn.init.orthogonal_(torch.empty(7, 5)), later=lambda: torch.randn(3)),
    "trunc_normal": own(w=lambda: nn.init.trunc_normal_(torch.empty(40, 5), std=2), later=lambda: torch.randn(3)),
    "sparse": own(w=lambda: nn.init.sparse_(torch.empty(9, 5), 0.4), later=lambda: torch.randn(3)),
    "dirac": own(w=lambda: nn.init.dirac_(torch.empty(4, 4, 3))),
    "kaiming": own(
        w=lambda: nn.init.kaiming_normal_(torch.empty(64, 33)),
        v=lambda: nn.init.xavier_uniform_(torch.empty(5, 3)),
    ),
    "buffers": own(steps=lambda: torch.arange(12.0).view(3, 4), passing=lambda: torch.linspace(0, 1, 5)),
    "constants": own(
        p=lambda: nn.Parameter(torch.tensor([1.5, 2.5])),
        net=lambda: nn.Linear(20, 20),
        m=lambda: torch.tensor(2),
        tripled=lambda: torch.tensor([1.5, 2.5]).mul_(3),
    ),
    "array": own(
        a=lambda: torch.tensor(np.arange(4.0)),
        net=lambda: nn.Linear(20, 20),
        t=lambda: torch.Tensor([1, 2]),
        u=lambda: nn.Parameter(torch.tensor(np.ones(2), requires_grad=True)),
    ),
    "masks": own(m=lambda: torch.ones(5, 5).triu(1).masked_fill(torch.ones(5, 5).triu(1) == 1, float("-inf"))),
    "odd": own(
        w=lambda: torch.randn(5, 7).t().contiguous(),
        v=lambda: torch.empty(7, 5).t().normal_(),
        z=lambda: torch.randn(15),
    ),
    "samplers": own(
        a=lambda: torch.bernoulli(torch.rand(50)),
        b=lambda: torch.randperm(17),
        c=lambda: torch.poisson(torch.rand(9) * 5),
        d=lambda: torch.multinomial(torch.rand(9), 4),
        e=lambda: torch.empty(30).bernoulli_(0.3),
        f=lambda: torch.normal(torch.arange(9.0), 2.0),
        g=lambda: nn.functional.dropout(torch.rand(20)),
        h=lambda: torch.randint(0, 9, (5,)),
        i=lambda: torch.rand(33, dtype=torch.float64),
        j=lambda: torch.empty(9).exponential_(),
        k=lambda: torch.rand_like(torch.ones(6)),
        l=lambda: bernoulli_of_itself(),
        z=lambda: torch.randn(3),
    ),
    "tried": lambda: tried(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, 9))
    ),
    "seen_from_outside": lambda: seen_from_outside(),
    "descended": lambda: descended(),
    "copied": lambda: copied(),
    "generator": own(a=lambda: torch.randn(9, generator=torch.Generator().manual_seed(5)), b=lambda: torch.randn(9)),
    "seeded": own(a=lambda: (torch.manual_seed(8), torch.randn(5))[1], b=lambda: torch.randn(5)),
    "forked": own(a=lambda: forked(), b=lambda: torch.randn(5)),
    "depths": own(a=lambda: torch.rand(4) * sum(x.item() for x in torch.linspace(0, 0.1, 5)), b=lambda: torch.randn(5)),
    "chosen": own(a=lambda: torch.randn(4) if torch.rand(1) > 0.5 else torch.rand(4) * int(torch.randint(9, ()))),
    "listed": own(a=lambda: torch.full((3,), sum(torch.randn(5).tolist())), b=lambda: torch.randn(5)),
    "chosen_places": own(a=lambda: torch.randn(9)[torch.rand(9) > 0.5]),
    "compared": own(a=lambda: torch.randn(5) if torch.equal(torch.rand(3), torch.rand(3)) else torch.rand(4)),
    "joined": own(a=lambda: torch.cat([torch.randn(3, 3), torch.eye(3)]), b=lambda: torch.stack([torch.rand(3)] * 2)),
    "chunks": own(net=lambda: chunks()),
    "default_type": own(a=lambda: doubled(), b=lambda: torch.rand(3)),
}


def bernoulli_of_itself():
    x = torch.tensor([0.1, 0.4, 0.6, 0.9] * 5)
    return x.bernoulli_(x)


def tried(net):
    """Seen a picture, of which BatchNorm keeps the statistics."""
    net(torch.randn(2, 1, 8, 8))
    return net


def descended():
    """A step of gradient descent from the drawn numbers."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net(torch.randn(5, 3)).square().mean().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    net.zero_grad()
    return net


def copied():
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    layer[1].running_mean += 3
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(3)).append(layer)


OUTSIDE = torch.zeros(3)
SHARED = OUTSIDE.numpy()


def seen_from_outside():
    """A tensor of the world outside, whose memory NumPy has, between two uses of it."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for k, layer in enumerate(net):
        SHARED[:] = k
        with torch.no_grad():
            layer.weight += OUTSIDE
    return net


def forked():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return torch.randn(5)


def chunks():
    return nn.ParameterList(nn.Parameter(x) for x in torch.randn(3, 4))


def doubled():
    torch.set_default_dtype(torch.float64)
    try:
        return torch.rand(3) + torch.arange(3) / 2
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_builds(build):
    check(build)


def from_numpy():
    net = nn.Linear(3, 2)
    with torch.no_grad():
        scratch = np.zeros((2, 3), np.float32)
        view = torch.from_numpy(scratch)
        scratch += 5
        net.weight.copy_(view)
    return net


def through_numpy():
    net = nn.Linear(3, 2)
    net.weight.detach().numpy()[:] = 3
    return net


def caught():
    net = nn.Linear(3, 2)
    try:
        net.weight.detach().numpy()[:] = 3
    except Exception:
        nn.init.zeros_(net.weight)
    return net


def through_storage():
    net = nn.Linear(3, 2)
    net.weight.untyped_storage().fill_(0)
    return net


def loaded(state):
    net = nn.Linear(3, 2)
    net.load_state_dict(state)
    return net


def with_real_part(part):
    return nn.Sequential(nn.Linear(2, 3), part)


def attended():
    net = nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        net.in_proj_bias += net(*[torch.randn(5, 4)] * 3)[0].sum()
    return net


def from_file():
    with tempfile.TemporaryFile() as file:
        torch.save(nn.Linear(3, 2).state_dict(), file)
        file.seek(0)
        return loaded(torch.load(file))


def drawn_by_numpy():
    rng = np.random.default_rng(0)
    net = nn.Linear(30, 2)
    net.weight = nn.Parameter(torch.tensor(rng.standard_normal((2, 30)), dtype=torch.float32))
    return net


def skipped():
    net = nn.Sequential(nn.utils.skip_init(nn.Linear, 4, 3), nn.Linear(3, 3))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    return net


WHOLE = {
    "from_numpy": from_numpy,
    "through_numpy": through_numpy,
    "caught": caught,
    "through_storage": through_storage,
    "loaded": partial(loaded, nn.Linear(3, 2).state_dict()),
    "attended": attended,
    "lazy": lambda: tried(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))),
    "from_file": from_file,
    "drawn_by_numpy": drawn_by_numpy,
    "instance": partial(lambda net: net, nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 3), tied())),
    "with_real_part": partial(with_real_part, nn.BatchNorm1d(3)),
    "skipped": skipped,
    "constants": lambda: Centred(),
}


@pytest.mark.parametrize("build", WHOLE.values(), ids=WHOLE)
def test_builds_that_keep_their_numbers(build):
    check(build, whole=True)


def test_numbers_of_another_seed_differ():
    fills = []
    for seed in (0, 1):
        x = torch.empty(2, 3)
        Blueprint.of(lambda: nn.Linear(3, 2), seed).fill([(x, Piece("weight", Cut((2, 3))))])
        fills.append(x)
    assert not torch.equal(*fills)


def test_the_generator_is_left_alone_by_recording():
    before = torch.get_rng_state()
    for build in (models.LeNet, from_numpy):
        Blueprint.of(build, 0)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_of_the_callers_is_moved_once():
    """By the build, as it would be without a blueprint; not by filling."""
    generator = torch.Generator().manual_seed(4)
    blueprint = Blueprint.of(own(a=lambda: torch.randn(9, generator=generator), b=lambda: torch.rand(3)), 0)
    after = generator.get_state()
    x = torch.empty(9)
    blueprint.fill([(x, Piece("a", Cut((9,))))])
    assert torch.equal(generator.get_state(), after)
    twin = torch.Generator().manual_seed(4)
    assert torch.equal(x, torch.randn(9, generator=twin))
    assert torch.equal(twin.get_state(), after)


def test_constants_are_those_of_the_time_of_the_build():
    state = nn.Linear(3, 2).state_dict()
    blueprint = Blueprint.of(partial(loaded, state), 0)
    expected = state["weight"].clone()
    state["weight"].zero_()
    x = torch.empty(2, 3)
    blueprint.fill([(x, Piece("weight", Cut((2, 3))))])
    assert torch.equal(x, expected)


def test_the_reason_is_said():
    assert Blueprint.of(models.LeNet, 0).reason is None
    assert Blueprint.of(through_numpy, 0).reason == "it reaches into the memory of a tensor (numpy)"
    assert Blueprint.of(caught, 0).reason == "it reaches into the memory of a tensor (numpy)"
    assert "shares memory with NumPy" in Blueprint.of(from_numpy, 0).reason


class Centred(nn.Linear):
    """Keeps tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.mean = torch.tensor([1.0, 2.0, 3.0])
        self.more = {"scale": [torch.rand(3)]}
        self.all = [self.weight, self.bias]

    def forward(self, x):
        return super().forward((x - self.mean) * self.more["scale"][0])


def test_tensors_that_are_neither_parameters_nor_buffers_are_real():
    blueprint = Blueprint.of(Centred, 0)
    assert blueprint.reason == "Centred.mean is a tensor, but neither a parameter nor a buffer"
    made, net = blueprint.module, Centred()
    assert made.weight.is_meta and made.all[0] is made.weight
    assert torch.equal(made.mean, net.mean) and made.more["scale"][0].device == net.mean.device


def test_an_instance_is_not_changed():
    net = nn.Linear(3, 2)
    blueprint = Blueprint.of(lambda: net, 0)
    assert not net.weight.is_meta
    assert blueprint.module is not net


def test_refusals():
    with pytest.raises(UsageError, match="weight has no shape yet"):
        Blueprint.of(lambda: nn.LazyLinear(3), 0)
    with pytest.raises(UsageError, match="weight has no numbers"):
        Blueprint.of(lambda: nn.Linear(3, 2, device="meta"), 0)
    with pytest.raises(ZeroDivisionError):
        Blueprint.of(lambda: nn.Linear(1 // 0, 3), 0)
    with pytest.raises(UsageError, match=r"weight has the shape \(2, 3\)"):
        Blueprint.of(lambda: nn.Linear(3, 2), 0).fill([(torch.empty(3, 3), Piece("weight", Cut((3, 3))))])


MEMORY = """
import re, torch
from firesteel.models import MLP
from firesteel.parts.blueprint import Blueprint
from firesteel.parts.cuts import Cut, Piece, shares

torch.set_num_threads(1)

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

Blueprint.of(lambda: MLP(8, 8, 8), 0)
start = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
blueprint = Blueprint.of(lambda: MLP(*[4000] * 5, 10), 0)
wanted = []
for name, x in blueprint.module.named_parameters():
    cut = Cut(tuple(x.shape), 0, (shares(len(x), 10)[3],))
    wanted.append((torch.empty(cut.shape), Piece(name, cut)))
blueprint.fill(wanted)
tensors = [x.nbytes for x in blueprint.module.parameters()]
print(sum(tensors), max(tensors), sum(x.nbytes for x, _ in wanted), memory("VmHWM") - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_one_tensor_and_the_pieces():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    whole, largest, pieces, peak = map(int, done.stdout.split())
    assert whole > 2.5e8
    assert largest < peak < 1.4 * largest + pieces, (whole, largest, pieces, peak)
