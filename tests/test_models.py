"""The networks: shapes, chains, names, sizes that are refused, sequences, and what their designs promise."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import firesteel
from firesteel import Local, UsageError, persistence
from firesteel.models import MLP, VGG, CharLSTM, LeNet, LSTMClassifier, RNNClassifier
from firesteel.models.layers import Last, run_chain

TOKENS = torch.arange(14).view(2, 7)
NETWORKS = {  # a network, a batch of two rows, and the outputs' shape
    "mlp": (lambda: MLP(12, 5, 3, dropout=0.5), torch.randn(2, 3, 4), (2, 3)),
    "lenet": (LeNet, torch.randn(2, 28, 28), (2, 10)),
    "lenet of colours": (lambda: LeNet(3, 4), torch.randn(2, 3 * 784), (2, 4)),
    "vgg": (lambda: VGG(11, 0.125), torch.randn(2, 3, 32, 32), (2, 10)),
    "vgg, batch norm": (lambda: VGG(16, 0.125, norm="batch", channels=1, classes=4), torch.randn(2, 1024), (2, 4)),
    "vgg, group norm": (lambda: VGG(13, 0.25, norm="group", dropout=0.5), torch.randn(2, 3072), (2, 10)),
    "rnn": (lambda: RNNClassifier(4, 6, 3), torch.randn(2, 5, 4), (2, 3)),
    "rnn of flat rows": (lambda: RNNClassifier(4, 6, 3, layers=2, dropout=0.5), torch.randn(2, 20), (2, 3)),
    "lstm": (lambda: LSTMClassifier(28, 8, 10, layers=2, dropout=0.5), torch.randn(2, 28, 28), (2, 10)),
    "charlstm": (lambda: CharLSTM(14, 6, layers=2, dropout=0.5), TOKENS, (2, 14, 7)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_that_forward_is_the_chain(name):
    make, x, shape = NETWORKS[name]
    module = make().eval()
    whole = module(x)
    assert whole.shape == shape
    by_hand = x
    for layer in module.chain():
        by_hand = layer(by_hand)
        by_hand = by_hand[0] if isinstance(layer, nn.RNN | nn.LSTM) else by_hand
    assert torch.equal(by_hand, whole)
    in_chain = {id(p) for layer in module.chain() for p in layer.parameters()}
    assert in_chain == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_by_how_they_were_made(name, tmp_path):
    make, x, _ = NETWORKS[name]
    module = make().eval()
    assert persistence.save(tmp_path, module, persistence.spec_of(module), None, {}) == "import"
    assert torch.equal(firesteel.load(tmp_path)(x), module(x))


NAMES = {  # saved models rely on them
    "mlp": ["layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"],
    "lenet": [
        f"{layer}.{kind}" for layer in ("features.0", "features.3", "head.1", "head.3", "head.5") for kind in ("weight", "bias")
    ],
    "rnn": [*(f"cells.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")), "out.weight", "out.bias"],
    "charlstm": [
        "symbols.weight",
        *(f"cells.{kind}_l{k}" for k in (0, 1) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        *("out.weight", "out.bias"),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_parameters(name):
    assert list(NETWORKS[name][0]().state_dict()) == NAMES[name]


def test_numpy_sizes_are_kept_as_plain_ones():
    spec = persistence.make_spec(LeNet, tuple(LeNet(np.int64(1), np.int64(5)).spec["args"]), {})
    assert spec is not None and spec["args"] == [1, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(4), "at least two sizes"),
        (lambda: MLP(4, 0, 2), r"MLP\(sizes\[1\]=0\): give a whole number of at least 1"),
        (lambda: MLP(4, 2, activation="swish"), "there are relu, tanh"),
        (lambda: MLP(4, 3, 2, dropout=1.5), "dropout"),
        (lambda: LeNet(0), r"LeNet\(channels=0\)"),
        (lambda: LeNet(1, 2.0), r"LeNet\(classes=2.0\)"),
        (lambda: VGG(12), r"VGG\(depth=12\): there are 11, 13, 16, 19"),
        (lambda: VGG(width=0), r"VGG\(width=0\)"),
        (lambda: VGG(width=float("nan")), r"VGG\(width=nan\)"),
        (lambda: VGG(norm="layer"), 'give None, "batch" or "group"'),
        (lambda: VGG(classes=-1), r"VGG\(classes=-1\)"),
        (lambda: VGG(dropout=-0.1), "dropout"),
        (lambda: RNNClassifier(0, 4, 2), r"RNNClassifier\(inputs=0\)"),
        (lambda: LSTMClassifier(3, True, 2), r"LSTMClassifier\(hidden=True\)"),
        (lambda: LSTMClassifier(3, 4, 2, dropout=0.5), "it lies between layers, and there is one"),
        (lambda: LSTMClassifier(3, 4, 2, layers=2, dropout=2.0), "dropout"),
        (lambda: CharLSTM(65, 8, layers=0), r"CharLSTM\(layers=0\)"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- VGG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "groups"),
    [(11, (1, 1, 2, 2, 2)), (13, (2, 2, 2, 2, 2)), (16, (2, 2, 3, 3, 3)), (19, (2, 2, 4, 4, 4))],
)
def test_vgg_is_table_1(depth, groups):
    with torch.device("meta"):
        net = VGG(depth)
    weights = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(weights) == depth
    kinds = "".join({nn.Conv2d: "c", nn.MaxPool2d: "m"}.get(type(layer), "") for layer in net.features)
    assert kinds == "".join("c" * count + "m" for count in groups)
    outs = [layer.out_channels for layer in weights if isinstance(layer, nn.Conv2d)]
    assert outs == [n for count, n in zip(groups, (64, 128, 256, 512, 512), strict=True) for _ in range(count)]
    assert all(layer.kernel_size == (3, 3) and layer.padding == (1, 1) for layer in weights if isinstance(layer, nn.Conv2d))


def test_vgg_by_width():
    outs = [layer.out_channels for layer in VGG(11, 0.125).features if isinstance(layer, nn.Conv2d)]
    assert outs == [8, 16, 32, 32, 64, 64, 64, 64]
    assert VGG(11, 0.001).head[-1].in_features == 8


@pytest.mark.parametrize(("norm", "kind"), [(None, type(None)), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_a_convolution_before_a_norm_has_no_bias(norm, kind):
    features = list(VGG(16, 0.125, norm=norm).features)
    convolutions = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13
    for i in convolutions:
        assert (features[i].bias is None) == (norm is not None)
        assert isinstance(features[i + 1], nn.ReLU if norm is None else kind)


# ---- sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [RNNClassifier, LSTMClassifier])
def test_padding_never_matters(network):
    torch.manual_seed(0)
    net = network(3, 8, 4, layers=2)
    lengths = torch.tensor([5, 1, 0, 7, 3])
    x = torch.randn(5, 7, 3)
    found = net(x, lengths)
    other = torch.where((torch.arange(7) < lengths[:, None])[..., None], x, 1e3 * torch.randn(5, 7, 3))
    assert torch.equal(net(other, lengths), found)
    for row, n in enumerate(lengths.tolist()):
        if n:
            torch.testing.assert_close(net(x[row : row + 1, :n])[0], found[row])
    torch.testing.assert_close(found[2], net.out.bias)  # no step at all: the state before the first
    loss = found.square().sum()
    loss.backward()
    full = torch.nn.utils.rnn.pack_padded_sequence(x[[3, 0, 4, 1]], torch.tensor([7, 5, 3, 1]), batch_first=True)
    packed = net.out(torch.nn.utils.rnn.unpack_sequence(net.cells(full)[0])[0][-1])
    torch.testing.assert_close(packed, found[3])


def test_only_the_last_layer_sees_lengths():
    states, lengths = torch.randn(3, 4, 2), torch.tensor([4, 2, 0])
    found = run_chain([nn.Tanh(), Last(), nn.Linear(2, 2)], states, lengths)
    assert found.shape == (3, 2)
    assert Last()(states, lengths)[1].tolist() == states[1, 1].tolist() and not Last()(states, lengths)[2].any()
    assert torch.equal(Last()(states), states[:, -1])


# ---- training --------------------------------------------------------------------------------------------------------


def fit(model, data, **settings):
    settings = {"on": Local(workers=2), "batch_size": 16, "seed": 1, "progress": "none", **settings}
    return firesteel.train(model, data, **settings)


def counting(rows=400, steps=8, symbols=6):
    """Windows in which every symbol but the first is its forerunner plus one; the rule is all there is to learn."""
    x = (np.random.default_rng(0).integers(0, symbols, (rows, 1)) + np.arange(steps)) % symbols
    return x, (x + 1) % symbols


def test_a_text_is_learnt_symbol_by_symbol():
    run = fit(functools.partial(CharLSTM, 6, 16), counting(), optimizer=firesteel.Adam(lr=2e-2), epochs=4)
    assert run.metrics["validation_accuracy"] == 1.0 and run.metrics["validation_loss"] < 0.1, run.metrics


def test_accuracy_is_the_share_of_all_steps(tmp_path):
    """Measured on other rows, by hand; with weights too; from Parquet, with lists as labels."""
    x, y = counting()
    run = fit(functools.partial(CharLSTM, 6, 4), (x, y), max_steps=12)
    with torch.no_grad():
        outputs, targets = run.model(torch.from_numpy(x)), torch.from_numpy(y)
    right, losses = (outputs.argmax(1) == targets).double(), nn.functional.cross_entropy(outputs, targets, reduction="none")
    found = run.evaluate((x, y))
    assert 0.05 < found["accuracy"] < 0.95
    assert found["accuracy"] == pytest.approx(float(right.mean())) and found["loss"] == pytest.approx(float(losses.mean()))
    pq.write_table(
        pa.table({"ids": x.tolist(), "next": y.tolist(), "w": [1.0, 1.0, 0.0, 0.0] * 100}), tmp_path / "rows.parquet"
    )
    path, columns = str(tmp_path / "rows.parquet"), dict(features=firesteel.Tokens("ids"), label="next")
    stored = fit(functools.partial(CharLSTM, 6, 4), path, max_steps=12, **columns)
    assert stored.evaluate(path) == pytest.approx(found)
    weighted = fit(functools.partial(CharLSTM, 6, 4), path, max_steps=1, weight="w", **columns)
    with torch.no_grad():
        right = (weighted.model(torch.from_numpy(x)).argmax(1) == targets).double()
    assert weighted.evaluate(path)["accuracy"] == pytest.approx(float(right.view(100, 4, 8)[:, :2].mean()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, [*y.tolist()[:-1], [1, 2]]), "'label' holds lists of unequal length, from 2 to 8; .*as many entries"),
        (lambda x, y: (x, np.where(y == 5, 7, y)), "labels go up to 7, but the model has 6 outputs"),
        (lambda x, y: (x, y - 1), "'label' must hold classes.*negative"),
        (lambda x, y: (x, y[:, 1:]), r"outputs \(2, 6, 8\), labels \(2, 7\)"),
    ],
    ids=["unequal", "too large", "negative", "too short"],
)
def test_classes_of_steps_that_do_not_fit(change, message):
    x, y = change(*counting())
    table = pa.table({"features": x.tolist(), "label": y if isinstance(y, list) else y.tolist()})
    with pytest.raises(UsageError, match=message):
        fit(functools.partial(CharLSTM, 6, 4), table, features=firesteel.Tokens("features"), max_steps=1)


def test_members_of_an_ensemble_vote_on_every_step():
    run = fit(
        functools.partial(CharLSTM, 6, 16), counting(), strategy=firesteel.Ensemble(), epochs=6, optimizer=firesteel.Adam(2e-2)
    )
    x, y = counting()
    with torch.no_grad():
        probabilities = run.model(torch.from_numpy(x)).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(400, 8))
    assert run.evaluate((x, y))["accuracy"] > 0.9


def test_a_list_of_arrays_is_a_sequence():
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((int(n), 2)).astype(np.float32) for n in rng.integers(1, 9, 600)]
    y = np.array([int(rows[-1, 0] > 0) for rows in x])
    run = fit(functools.partial(RNNClassifier, 2, 8, 2), (x, y), optimizer=firesteel.Adam(lr=2e-2), epochs=6)
    assert run.metrics["validation_accuracy"] > 0.9, run.metrics
    alike = [i for i, rows in enumerate(x) if len(rows) == 4]  # of one length they are an array, and mean the same
    assert run.evaluate((np.stack([x[i] for i in alike]), y[alike]))["accuracy"] > 0.9
    with pytest.raises(UsageError, match=r"X holds rows of float32 \[T, 2\] and float32 \[T, 3\]; sequences must be"):
        fit(functools.partial(RNNClassifier, 2, 8, 2), ([*x[:3], np.zeros((2, 3), np.float32)], y[:4]))


@pytest.mark.parametrize("norm", [None, "batch", "group"])
def test_a_narrow_vgg_learns(norm):
    """Which half of the picture is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 240)
    x = rng.integers(0, 120, (240, 1, 32, 32))
    x[:, :, :16] += (y * 120)[:, None, None, None]
    x[:, :, 16:] += ((1 - y) * 120)[:, None, None, None]
    make = functools.partial(VGG, 11, 0.125, norm=norm, channels=1, classes=2)
    run = fit(make, (x.astype(np.uint8), y), optimizer=firesteel.Adam(lr=2e-3), epochs=5)
    assert run.metrics["validation_accuracy"] > 0.9, run.metrics
