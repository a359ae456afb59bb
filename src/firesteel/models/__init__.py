"""Networks to begin with. Sizes in, hidden..., out."""

from __future__ import annotations

from firesteel.models.lenet import LeNet
from firesteel.models.mlp import MLP
from firesteel.models.recurrent import CharLSTM, LSTMClassifier, RNNClassifier
from firesteel.models.vgg import VGG

__all__ = ["MLP", "VGG", "CharLSTM", "LSTMClassifier", "LeNet", "RNNClassifier"]
