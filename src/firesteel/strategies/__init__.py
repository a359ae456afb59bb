"""The catalogue: every way to train together. One family, one page; the rules and sources stand in each docstring."""

from __future__ import annotations

from firesteel.strategies.averaging import DiLoCo, ModelAveraging, PostLocalSGD, SlowMo
from firesteel.strategies.elastic import AEASGD, EAMSGD, EASGD
from firesteel.strategies.excursions import ADAG, AGN, Downpour, DynSGD
from firesteel.strategies.gradients import SyncSGD
from firesteel.strategies.independent import Ensemble, Single

__all__ = [
    "ADAG",
    "AEASGD",
    "AGN",
    "CATALOGUE",
    "EAMSGD",
    "EASGD",
    "DiLoCo",
    "Downpour",
    "DynSGD",
    "Ensemble",
    "ModelAveraging",
    "PostLocalSGD",
    "Single",
    "SlowMo",
    "SyncSGD",
]

CATALOGUE = {
    cls.__name__: cls
    for cls in (
        *(Single, Ensemble),
        *(SyncSGD, ModelAveraging, PostLocalSGD, SlowMo, DiLoCo, EASGD),
        *(Downpour, AGN, DynSGD, ADAG, AEASGD, EAMSGD),
    )
}
