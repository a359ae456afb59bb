"""`firesteel train`."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, final

import torch
import tyro

from firesteel import datasets, models
from firesteel.checkpoint import Folder
from firesteel.cli.session import world
from firesteel.data.columns import Features, Image
from firesteel.errors import Interrupted, UsageError, did_you_mean
from firesteel.job import EarlyStopping
from firesteel.local.world import Local
from firesteel.optim import SGD, Adagrad, Adam, AdamW, OptimizerSettings
from firesteel.progress import Show
from firesteel.run import Run
from firesteel.server import Server
from firesteel.sim.world import Simulated
from firesteel.spark.world import Spark
from firesteel.strategies import CATALOGUE

CALL = "call.json"  # in the run folder: what was typed, for `firesteel replay`
NETWORKS: dict[str, tuple[Any, str]] = {
    "mlp": (models.MLP, "mlp:IN,HIDDEN,...,OUT, for example mlp:64,128,10"),
    "lenet": (models.LeNet, "lenet or lenet:CHANNELS,CLASSES"),
    "vgg": (models.VGG, "vgg:DEPTH,WIDTH,NORM, for example vgg:16,0.25,group"),
    "rnn": (models.RNNClassifier, "rnn:IN,HIDDEN,CLASSES, for example rnn:12,32,9"),
    "lstm": (models.LSTMClassifier, "lstm:IN,HIDDEN,CLASSES, for example lstm:28,64,10"),
    "charlstm": (models.CharLSTM, "charlstm:SYMBOLS,HIDDEN, for example charlstm:65,128"),
}
MODELS = ", ".join([form.split(", for")[0] for _, form in NETWORKS.values()]) + ", and MODULE:FACTORY of your own"
OPTIMIZERS = {"adam": Adam, "adamw": AdamW, "sgd": SGD, "adagrad": Adagrad}


@final
@dataclass(frozen=True)
class Train:
    """Train a network on rows that are spread over workers.

    Examples:
      firesteel train mlp:64,128,10 digits --epochs 20
      firesteel train lenet mnist:./mnist --strategy ModelAveraging --set period=16 --workers 4
      firesteel train lstm:12,64,9 japanese_vowels --batch-size 8 --lr 0.005 --epochs 30
      firesteel train mymodels:net data.parquet --features x1 x2 --label y --out model --plot curves.png
      firesteel train mlp:64,128,10 digits --on spark --master "local-cluster[2,1,2048]"
      firesteel train mymodels:net data.parquet --strategy mymethods:Gossip --set period=2
      firesteel train mlp:64,128,10 digits --strategy DynSGD --workers 4 --server shards=2 --staleness staleness.png
      firesteel train mlp:64,128,10 digits --strategy AGN --on cluster.json --workers 100 --gantt gantt.png

    Ctrl-C stops within seconds and keeps the model.
    """

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """mlp:IN,HIDDEN,...,OUT, lenet, vgg:DEPTH,WIDTH, rnn: or lstm:IN,HIDDEN,CLASSES, charlstm:SYMBOLS,HIDDEN, or
    MODULE:FACTORY (also from the current folder)."""
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """A Parquet file or folder, or digits, mnist, cifar10, japanese_vowels, tinyshakespeare, a9a, higgs, or NAME:FOLDER of
    their files."""
    features: list[str] = field(default_factory=lambda: ["features"])
    """Feature columns."""
    label: str = "label"
    """Label column."""
    weight: str | None = None
    """Weight column."""
    image_shape: tuple[int, ...] | None = None
    """The feature column holds images of this shape, for example 1 28 28."""
    loss: str = "cross_entropy"
    """cross_entropy, bce_with_logits, mse, mae or huber."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] | None = None
    """The local optimizer; adam if it is not given."""
    lr: float | None = None
    """Learning rate; the optimizer's own default if it is not given."""
    momentum: float | None = None
    """Momentum, for sgd."""
    weight_decay: float | None = None
    """Weight decay."""
    strategy: str = "SyncSGD"
    """A name of `firesteel strategies`, or MODULE:CLASS."""
    set: Annotated[list[str], tyro.conf.arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """Settings of the strategy, such as period=16."""
    on: str = "local"
    """local: this machine; spark; or the JSON file of an imagined cluster, which trains in virtual time."""
    workers: int | None = None
    """Number of workers: 2, or as many as the imagined cluster has."""
    master: str | None = None
    """Spark's master, such as "local-cluster[2,1,2048]" or spark://host:7077."""
    remote: str | None = None
    """A Spark Connect server, such as sc://host:15002."""
    server: Annotated[list[str], tyro.conf.arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """Settings of the server, for strategies that have one: shards=2, tls=True, max_ahead=4, max_growth=1e6."""
    batch_size: int | None = None
    """Rows of a step, per worker; 64 if it is not given."""
    epochs: float | None = None
    """Passes over the rows; 5 if no other limit is given (100 where each step sees all rows)."""
    max_steps: int | None = None
    """Steps of each worker, at most."""
    max_seconds: float | None = None
    """Wall seconds of training, at most; virtual ones on an imagined cluster."""
    validation: str = "0.1"
    """A share of the rows, a boolean column, another Parquet path, or none."""
    score_training: float | None = None
    """A share of the training rows, above 0 and at most 1, on which published models are evaluated as well."""
    metrics: list[str] = field(default_factory=list)
    """accuracy, mse, mae; accuracy for classes if none is given."""
    early_stopping: int | None = None
    """Stop after this many epochs without a better validation loss."""
    clip_norm: float | None = None
    """Largest norm of a gradient."""
    seed: int = 0
    """All randomness comes from it."""
    run_dir: str | None = None
    """Folder (path or URI that all workers see) for points to resume from."""
    resume: bool = False
    """Go on from the newest point in --run-dir."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU for each worker where there are enough."""
    out: str | None = None
    """Save the model into this folder."""
    plot: str | None = None
    """Draw the learning curves into this file."""
    gantt: str | None = None
    """Draw who computed, waited and sent when into this file."""
    staleness: str | None = None
    """Draw the histogram of staleness into this file, for strategies with a server."""
    json: bool = False
    """Print one JSON object, last, on standard output; all else goes to standard error."""
    progress: Show = "auto"
    """A bar on a terminal, lines elsewhere."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        on = self.world()
        if self.run_dir is not None:
            Folder(self.run_dir).put(CALL, json.dumps(dataclasses.asdict(self)).encode())
        try:
            run = self.train(on, on)
        except Interrupted as stopped:
            if stopped.run is not None:
                self._finish(stopped.run)
            raise
        self._finish(run)
        return 0

    def world(self) -> Local | Spark | Simulated:
        """Where the flags say it runs."""
        return world(self.on, self.workers, self.master, self.remote, Server(**_settings(Server, self.server)))

    def train(self, home: Local | Spark | Simulated, on: Any) -> Run:
        """Train as the flags say, on data read as `home` reads it."""
        from firesteel.train import train

        rows, columns = self.rows_for(home)
        return train(
            model_of(self.model),
            rows,
            features=columns,
            label=self.label,
            weight=self.weight,
            loss=self.loss,
            optimizer=self.chosen_optimizer(),
            strategy=strategy_of(self.strategy, self.set),
            on=on,
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            max_seconds=self.max_seconds,
            validation=self._validation(),
            score_training=self.score_training,
            metrics=tuple(self.metrics) or None,
            early_stopping=EarlyStopping(patience=self.early_stopping) if self.early_stopping else None,
            clip_norm=self.clip_norm,
            seed=self.seed,
            run_dir=self.run_dir,
            resume=self.resume or None,
            device=self.device,
            progress=self.progress,
        )

    def rows_for(self, on: Any) -> tuple[Any, Features]:
        columns: Features = list(self.features) if len(self.features) > 1 else self.features[0]
        if self.image_shape is not None:
            columns = Image(self.features[0], self.image_shape)
        if self.data.partition(":")[0] not in datasets.NAMES or os.path.exists(self.data):
            return self.data, columns
        found = datasets.load(self.data)
        if columns == "features":
            columns = found.features
        return (found.frame(on.session)[0] if isinstance(on, Spark) else found), columns

    def _validation(self) -> Any:
        if self.validation.lower() == "none":
            return None
        try:
            return float(self.validation)
        except ValueError:
            return self.validation

    def chosen_optimizer(self) -> OptimizerSettings | None:
        given = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        if self.optimizer is None and not any(value is not None for value in given.values()):
            return None
        cls: Any = OPTIMIZERS[self.optimizer or "adam"]
        known = {f.name for f in dataclasses.fields(cls)}
        for name, value in given.items():
            if value is not None and name not in known:
                raise UsageError(f"--{name.replace('_', '-')} does not go with --optimizer {self.optimizer or 'adam'}.")
        return cls(**{name: value for name, value in given.items() if value is not None})

    def _finish(self, run: Run) -> None:
        if self.out:
            used = run.save(self.out)
            print(f"model: {self.out} (saved by {used})", file=sys.stderr)
        if self.plot:
            run.plot(self.plot)
            print(f"plot:  {self.plot}", file=sys.stderr)
        if self.gantt:
            run.plot_gantt(self.gantt)
            print(f"gantt: {self.gantt}", file=sys.stderr)
        if self.staleness:
            run.plot_staleness(self.staleness)
            print(f"staleness: {self.staleness}", file=sys.stderr)
        rate, seconds = run.timing["samples_per_second"], run.timing["train_seconds"]
        unit = "virtual s" if self.on.endswith(".json") else "s"
        print(f"{run.status}: {run.settings['steps']} steps, {seconds:.3g} {unit}, {rate:,.0f} samples/{unit}", file=sys.stderr)
        for name, value in run.metrics.items():
            print(f"  {name:24}{value:.5g}", file=sys.stderr)
        if self.json:
            said = {
                "status": run.status,
                "metrics": run.metrics,
                "timing": run.timing,
                "settings": run.settings,
                "out": self.out,
            }
            print(json.dumps(said), flush=True)


def imported(path: str, what: str) -> Any:
    """The object MODULE:NAME, also from the current folder."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UsageError(f"{what} {path!r}: the module cannot be imported: {error}") from error
    except AttributeError as error:
        raise UsageError(f"{what} {path!r}: the module {module} has no {name}.") from error


def model_of(text: str) -> Any:
    """A call that makes the model that MODEL names: a factory, so that --seed decides how it begins."""
    kind, _, rest = text.partition(":")
    if kind in NETWORKS and not rest.isidentifier():
        network, form = NETWORKS[kind]
        settings = [_value(word) for word in rest.split(",")] if rest else []
        try:
            with torch.device("meta"):
                _ = network(*settings)
        except (ValueError, TypeError) as error:
            raise UsageError(f"model {text!r}: write {form}. {error}") from error
        return functools.partial(network, *settings)
    if not rest:
        raise UsageError(f"model {text!r} is not known; there are {MODELS}.")
    return imported(text, "model")


def strategy_of(name: str, settings: list[str]) -> Any:
    """The strategy of this name with settings NAME=VALUE."""
    cls: Any = imported(name, "strategy") if ":" in name else CATALOGUE.get(name)
    if cls is None:
        raise UsageError(f"strategy {name!r} is not known.{did_you_mean(name, CATALOGUE)} There are: {', '.join(CATALOGUE)}.")
    given, fields = _settings(cls, settings), getattr(cls, "__dataclass_fields__", {}).values()
    missing = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING and f.name not in given]
    if missing:
        raise UsageError(f"{cls.__name__} needs --set {' '.join(f'{each}=...' for each in missing)}.")
    return cls(**given)


def _settings(cls: Any, settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE as the keyword arguments of a dataclass."""
    known = [f.name for f in dataclasses.fields(cls)] if hasattr(cls, "__dataclass_fields__") else []
    given: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known:
            has = ", ".join(known) or "none"
            raise UsageError(f"{cls.__name__} has no setting {key!r}.{did_you_mean(key, known)} Its settings: {has}.")
        given[key] = _value(value)
    return given


def _value(text: str) -> Any:
    """A Python literal, a strategy with its defaults, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return strategy_of(text, []) if text in CATALOGUE else text
