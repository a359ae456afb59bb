"""The catalogue: every way to train together. One family, one page; the rules and sources stand in each docstring."""

from __future__ import annotations

from firesteel.strategies.averaging import DiLoCo, ModelAveraging, PostLocalSGD, SlowMo
from firesteel.strategies.elastic import AEASGD, EAMSGD, EASGD
from firesteel.strategies.excursions import ADAG, AGN, Downpour, DynSGD
from firesteel.strategies.gradients import SyncSGD
from firesteel.strategies.independent import Ensemble, Single
from firesteel.strategies.quasi_newton import VectorFreeLBFGS
from firesteel.strategies.sharded import VectorFreeAdaGrad, VectorFreeAdam

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
    "VectorFreeAdaGrad",
    "VectorFreeAdam",
    "VectorFreeLBFGS",
]

CATALOGUE = {
    cls.__name__: cls
    for cls in (
        *(Single, Ensemble),
        *(SyncSGD, ModelAveraging, PostLocalSGD, SlowMo, DiLoCo, EASGD),
        *(VectorFreeLBFGS, VectorFreeAdam, VectorFreeAdaGrad),
        *(Downpour, AGN, DynSGD, ADAG, AEASGD, EAMSGD),
    )
}
