"""Firesteel trains PyTorch networks on Apache Spark, with every classic way of distributing the training."""

from __future__ import annotations

from firesteel import datasets, models, strategies
from firesteel.data.columns import Image, Sequence, Tokens
from firesteel.errors import (
    ClusterError,
    Diverged,
    FiresteelError,
    Interrupted,
    OutOfMemory,
    RendezvousTimeout,
    StrategyError,
    UsageError,
    WorkerFailed,
    WorkerLost,
)
from firesteel.job import EarlyStopping
from firesteel.local.world import Local
from firesteel.optim import SGD, Adagrad, Adam, AdamW, ByEpochs, BySteps, Optimizer
from firesteel.persistence import load
from firesteel.run import Run
from firesteel.server import TLS, Server
from firesteel.sim.calibrate import calibrate
from firesteel.sim.cluster import Cluster, Compute, Draw, Failure, Merging, Network, Slow
from firesteel.sim.planner import plan
from firesteel.sim.replay import Replay
from firesteel.sim.world import Simulated
from firesteel.spark.world import Spark
from firesteel.strategies import (
    ADAG,
    AEASGD,
    AGN,
    EAMSGD,
    EASGD,
    ConsensusADMM,
    DiLoCo,
    DlADMM,
    Downpour,
    DynSGD,
    Ensemble,
    FullyShard,
    Grid,
    ModelAveraging,
    NeuronParallel,
    Pipeline,
    PostLocalSGD,
    Single,
    SlowMo,
    SyncSGD,
    TaylorADMM,
    TensorParallel,
    VectorFreeAdaGrad,
    VectorFreeAdam,
    VectorFreeLBFGS,
)
from firesteel.train import stop, train

__version__ = "0.1.0"

__all__ = [
    "ADAG",
    "AEASGD",
    "AGN",
    "EAMSGD",
    "EASGD",
    "SGD",
    "TLS",
    "Adagrad",
    "Adam",
    "AdamW",
    "ByEpochs",
    "BySteps",
    "Cluster",
    "ClusterError",
    "Compute",
    "ConsensusADMM",
    "DiLoCo",
    "Diverged",
    "DlADMM",
    "Downpour",
    "Draw",
    "DynSGD",
    "EarlyStopping",
    "Ensemble",
    "Failure",
    "FiresteelError",
    "FullyShard",
    "Grid",
    "Image",
    "Interrupted",
    "Local",
    "Merging",
    "ModelAveraging",
    "Network",
    "NeuronParallel",
    "Optimizer",
    "OutOfMemory",
    "Pipeline",
    "PostLocalSGD",
    "RendezvousTimeout",
    "Replay",
    "Run",
    "Sequence",
    "Server",
    "Simulated",
    "Single",
    "Slow",
    "SlowMo",
    "Spark",
    "StrategyError",
    "SyncSGD",
    "TaylorADMM",
    "TensorParallel",
    "Tokens",
    "UsageError",
    "VectorFreeAdaGrad",
    "VectorFreeAdam",
    "VectorFreeLBFGS",
    "WorkerFailed",
    "WorkerLost",
    "calibrate",
    "datasets",
    "load",
    "models",
    "plan",
    "stop",
    "strategies",
    "train",
]
