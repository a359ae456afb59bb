"""The catalogue: every way to train together. One family, one page; the rules and sources stand in each docstring."""

from __future__ import annotations

from firesteel.strategies.averaging import DiLoCo, ModelAveraging, PostLocalSGD, SlowMo
from firesteel.strategies.consensus import ConsensusADMM
from firesteel.strategies.dladmm import DlADMM
from firesteel.strategies.elastic import AEASGD, EAMSGD, EASGD
from firesteel.strategies.excursions import ADAG, AGN, Downpour, DynSGD
from firesteel.strategies.gradients import SyncSGD
from firesteel.strategies.grid import Grid
from firesteel.strategies.independent import Ensemble, Single
from firesteel.strategies.native import FullyShard, TensorParallel
from firesteel.strategies.neuron import NeuronParallel
from firesteel.strategies.pipeline import Pipeline
from firesteel.strategies.quasi_newton import VectorFreeLBFGS
from firesteel.strategies.sharded import VectorFreeAdaGrad, VectorFreeAdam
from firesteel.strategies.taylor import TaylorADMM

__all__ = [
    "ADAG",
    "AEASGD",
    "AGN",
    "CATALOGUE",
    "EAMSGD",
    "EASGD",
    "ConsensusADMM",
    "DiLoCo",
    "DlADMM",
    "Downpour",
    "DynSGD",
    "Ensemble",
    "FullyShard",
    "Grid",
    "ModelAveraging",
    "NeuronParallel",
    "Pipeline",
    "PostLocalSGD",
    "Single",
    "SlowMo",
    "SyncSGD",
    "TaylorADMM",
    "TensorParallel",
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
        *(TaylorADMM, DlADMM, ConsensusADMM),
        *(NeuronParallel, Pipeline, FullyShard, TensorParallel, Grid),
        *(Downpour, AGN, DynSGD, ADAG, AEASGD, EAMSGD),
    )
}
