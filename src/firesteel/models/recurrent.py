"""Recurrent networks: classifiers of sequences, and a model of text, symbol by symbol."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The state after each row's last step, [B, H], of [B, T, H]; of an empty row the state before its first one, 0."""
    if lengths is None:
        return states[:, -1]
    rows = torch.arange(len(states), device=states.device)
    return torch.where((lengths > 0)[:, None], states[rows, (lengths - 1).clamp(min=0)], 0.0)


@final
class RNNClassifier(nn.Module):
    """An Elman network (tanh) whose last state is classified: sequences [B, T, inputs] -> [B, classes].

    Called with lengths [B], the last state is that of each row's own last step. Flat rows, [B, T * inputs], are folded first.

        >>> import torch
        >>> RNNClassifier(12, 32, 9)(torch.zeros(2, 7, 12), torch.tensor([7, 3])).shape
        torch.Size([2, 9])
    """

    def __init__(self, inputs: int, hidden: int, classes: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:RNNClassifier", "args": [inputs, hidden, classes], "kwargs": kwargs}
        self.cells: nn.RNN = nn.RNN(inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out: nn.Linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        states, _ = self.cells(x.reshape(len(x), -1, self.cells.input_size))
        return self.out(_last(states, lengths))


@final
class LSTMClassifier(nn.Module):
    """An LSTM whose last state is classified: sequences [B, T, inputs] -> [B, classes].

    Called with lengths [B], the last state is that of each row's own last step. Flat rows, [B, T * inputs], are folded first:
    pictures of 28 x 28 become 28 steps, their rows of pixels.

        >>> import torch
        >>> LSTMClassifier(28, 64, 10)(torch.zeros(2, 784)).shape
        torch.Size([2, 10])
    """

    def __init__(self, inputs: int, hidden: int, classes: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:LSTMClassifier", "args": [inputs, hidden, classes], "kwargs": kwargs}
        self.cells: nn.LSTM = nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out: nn.Linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        states, _ = self.cells(x.reshape(len(x), -1, self.cells.input_size))
        return self.out(_last(states, lengths))


@final
class CharLSTM(nn.Module):
    """An LSTM that says, after each symbol, which comes next: int64 [B, T] -> [B, symbols, T], as `cross_entropy` wants it.

    >>> import torch
    >>> CharLSTM(65, 32)(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 65, 7])
    """

    def __init__(self, symbols: int, hidden: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        kwargs = {"layers": layers, "dropout": dropout}
        self.spec = {"import": "firesteel.models:CharLSTM", "args": [symbols, hidden], "kwargs": kwargs}
        self.symbols: nn.Embedding = nn.Embedding(symbols, hidden)
        self.cells: nn.LSTM = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.out: nn.Linear = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(self.symbols(x))
        return self.out(states).transpose(1, 2)
