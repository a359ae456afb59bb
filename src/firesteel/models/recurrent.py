"""Recurrent networks: classifiers of sequences, and a model of text, symbol by symbol."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from firesteel.models.layers import ClassesFirst, Fold, Last, run_chain, whole


def _between(network: str, dropout: float, layers: int) -> float:
    """The dropout between layers, 0 .. 1, which one layer alone cannot have."""
    if dropout and layers == 1:
        raise ValueError(f"{network}(dropout={dropout}): it lies between layers, and there is one; give layers=2 or more.")
    return dropout


@final
class RNNClassifier(nn.Module):
    """An Elman network (tanh) whose last state is classified: sequences [B, T, inputs] -> [B, classes].

    Called with lengths [B], the last state is that of each row's own last step. Flat rows, [B, T * inputs], are folded first.

    `dropout` (0 .. 1) follows every layer but the last.

    Raises:
        ValueError: a size that is no whole number of at least 1, a dropout outside 0 .. 1 or of one layer.

        >>> import torch
        >>> RNNClassifier(12, 32, 9)(torch.zeros(2, 7, 12), torch.tensor([7, 3])).shape
        torch.Size([2, 9])
    """

    def __init__(self, inputs: int, hidden: int, classes: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, hidden, classes, layers = whole("RNNClassifier", inputs=inputs, hidden=hidden, classes=classes, layers=layers)
        dropout = _between("RNNClassifier", dropout, layers)
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:RNNClassifier", "args": [inputs, hidden, classes], "kwargs": kwargs}
        self.fold: Fold = Fold(-1, inputs)
        self.cells: nn.RNN = nn.RNN(inputs, hidden, layers, batch_first=True, dropout=dropout)
        self.last: Last = Last()
        self.out: nn.Linear = nn.Linear(hidden, classes)

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.fold, self.cells, self.last, self.out]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return run_chain(self.chain(), x, lengths)


@final
class LSTMClassifier(nn.Module):
    """An LSTM whose last state is classified: sequences [B, T, inputs] -> [B, classes].

    Called with lengths [B], the last state is that of each row's own last step. Flat rows, [B, T * inputs], are folded first:
    pictures of 28 x 28 become 28 steps, their rows of pixels.

    `dropout` (0 .. 1) follows every layer but the last.

    Raises:
        ValueError: a size that is no whole number of at least 1, a dropout outside 0 .. 1 or of one layer.

        >>> import torch
        >>> LSTMClassifier(28, 64, 10)(torch.zeros(2, 784)).shape
        torch.Size([2, 10])
    """

    def __init__(self, inputs: int, hidden: int, classes: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, hidden, classes, layers = whole("LSTMClassifier", inputs=inputs, hidden=hidden, classes=classes, layers=layers)
        dropout = _between("LSTMClassifier", dropout, layers)
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:LSTMClassifier", "args": [inputs, hidden, classes], "kwargs": kwargs}
        self.fold: Fold = Fold(-1, inputs)
        self.cells: nn.LSTM = nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=dropout)
        self.last: Last = Last()
        self.out: nn.Linear = nn.Linear(hidden, classes)

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.fold, self.cells, self.last, self.out]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return run_chain(self.chain(), x, lengths)


@final
class CharLSTM(nn.Module):
    """An LSTM that says, after each symbol, which comes next: int64 [B, T] -> [B, symbols, T], as `cross_entropy` wants it.

    `dropout` (0 .. 1) follows every layer but the last.

    Raises:
        ValueError: a size that is no whole number of at least 1, a dropout outside 0 .. 1 or of one layer.

        >>> import torch
        >>> CharLSTM(65, 32)(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 65, 7])
    """

    def __init__(self, symbols: int, hidden: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        symbols, hidden, layers = whole("CharLSTM", symbols=symbols, hidden=hidden, layers=layers)
        dropout = _between("CharLSTM", dropout, layers)
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:CharLSTM", "args": [symbols, hidden], "kwargs": kwargs}
        self.symbols: nn.Embedding = nn.Embedding(symbols, hidden)
        self.cells: nn.LSTM = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=dropout)
        self.out: nn.Linear = nn.Linear(hidden, symbols)
        self.classes_first: ClassesFirst = ClassesFirst()

    def chain(self) -> list[nn.Module]:
        """The layers in order."""
        return [self.symbols, self.cells, self.out, self.classes_first]

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.chain(), x)
