"""The catalogue: every way to train together. One family, one page; the rules and sources stand in each docstring."""

from __future__ import annotations

from firesteel.strategies.averaging import DiLoCo, ModelAveraging, PostLocalSGD, SlowMo
from firesteel.strategies.gradients import SyncSGD
from firesteel.strategies.independent import Ensemble, Single

__all__ = ["CATALOGUE", "DiLoCo", "Ensemble", "ModelAveraging", "PostLocalSGD", "Single", "SlowMo", "SyncSGD"]

CATALOGUE = {cls.__name__: cls for cls in (Single, Ensemble, SyncSGD, ModelAveraging, PostLocalSGD, SlowMo, DiLoCo)}
