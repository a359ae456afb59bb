"""The Params of our stages, from one table: Spark's own names, and those of `firesteel.train` in Spark's style."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from pyspark.ml.param import Param, Params, TypeConverters

from firesteel import persistence
from firesteel.errors import UsageError, did_you_mean

Convert = Callable[[Any], Any]


def _as_is(value: Any) -> Any:
    return value


def _optional(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


@final
@dataclass(frozen=True)
class Setting:
    """One Param: its name, what `firesteel.train` calls it (None: not handed on), its default and its documentation."""

    name: str
    argument: str | None
    default: Any
    convert: Convert
    doc: str


_STRING, _INT, _FLOAT, _BOOL = (
    TypeConverters.toString,
    TypeConverters.toInt,
    TypeConverters.toFloat,
    TypeConverters.toBoolean,
)

COLUMNS = [
    Setting("featuresCol", None, "features", _STRING, "features: a vector, an array, a number, or bytes with featuresShape"),
    Setting("featuresShape", None, None, _optional(TypeConverters.toListInt), "shape of a row, for images: [1, 28, 28]"),
    Setting("labelCol", None, "label", _STRING, "label column"),
    Setting("weightCol", None, None, _optional(_STRING), "weight column, >= 0"),
    Setting("validationIndicatorCol", None, None, _optional(_STRING), "boolean column: True rows are held out for validation"),
    Setting("predictionCol", None, "prediction", _STRING, "column of predictions; '' for none"),
]

CLASSIFIER_COLUMNS = [
    Setting("probabilityCol", None, "probability", _STRING, "column of class probabilities, a vector; '' for none"),
    Setting("rawPredictionCol", None, "rawPrediction", _STRING, "column of the model's outputs, a vector; '' for none"),
]

TRAINING = [
    Setting("model", None, None, _as_is, "an nn.Module, or a picklable call that makes one"),
    Setting("loss", "loss", None, _as_is, "name or callable; cross_entropy for classifiers, mse for regressors"),
    Setting("optimizer", "optimizer", None, _as_is, "Adam() if not set"),
    Setting("schedule", "schedule", None, _as_is, "BySteps(...) or ByEpochs(...)"),
    Setting("strategy", "strategy", None, _as_is, "SyncSGD() if not set"),
    Setting("workers", None, 2, _INT, "number of workers, each a Spark task"),
    Setting("threads", None, 1, _optional(_INT), "PyTorch threads of each worker"),
    Setting("shuffle", None, True, _BOOL, "deal rows out evenly; False takes the partitions as they are"),
    Setting("batchSize", "batch_size", None, _optional(_INT), "rows of a step, per worker; 64 if not set"),
    Setting("epochs", "epochs", None, _optional(_FLOAT), "passes over the rows; 5 if no limit is set"),
    Setting("maxSteps", "max_steps", None, _optional(_INT), "steps of each worker, at most"),
    Setting("maxSeconds", "max_seconds", None, _optional(_FLOAT), "wall seconds of training, at most"),
    Setting("validation", None, 0.0, _FLOAT, "share of rows held out, where there is no validationIndicatorCol"),
    Setting("scoreTraining", "score_training", None, _optional(_FLOAT), "share of the training rows to evaluate on as well"),
    Setting("metrics", "metrics", None, _as_is, "names or callables; accuracy for classifiers"),
    Setting("earlyStopping", "early_stopping", None, _as_is, "EarlyStopping(...)"),
    Setting("clipNorm", "clip_norm", None, _optional(_FLOAT), "largest norm of a gradient"),
    Setting("seed", "seed", 0, _INT, "all randomness comes from it"),
    Setting("runDir", "run_dir", None, _optional(_STRING), "folder (URI) for points to resume from"),
    Setting("device", "device", "auto", _STRING, "auto, cpu or cuda"),
    Setting("progress", "progress", "auto", _as_is, "auto, bar, lines or none"),
]


def params_of(*tables: list[Setting]) -> Callable[[type], type]:
    """Class decorator: give a Params class its Params, getters and setters."""

    def add(cls: type) -> type:
        settings = [s for table in tables for s in table]
        for s in settings:
            setattr(cls, s.name, Param(Params._dummy(), s.name, s.doc, s.convert))  # pyright: ignore[reportPrivateUsage]
            title = s.name[0].upper() + s.name[1:]
            setattr(cls, f"get{title}", _getter(s.name))
            setattr(cls, f"set{title}", _setter(s.name))
        cls.settings = settings  # pyright: ignore[reportAttributeAccessIssue]
        return cls

    return add


def _getter(name: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return self.getOrDefault(name)

    get.__doc__ = f"The value of {name}."
    return get


def _setter(name: str) -> Callable[[Any, Any], Any]:
    def put(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    put.__doc__ = f"Set {name}; returns self."
    return put


def initialise(stage: Any, given: dict[str, Any]) -> None:
    """Set defaults and what was given by keyword; an unknown keyword is an error with a hint."""
    known = {s.name: s for s in stage.settings}
    for name in given:
        if name not in known:
            raise UsageError(
                f"{type(stage).__name__} has no parameter {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
    stage._setDefault(**{s.name: s.default for s in stage.settings})
    stage._set(**given)


# ---- values as JSON --------------------------------------------------------------------------------------------------


def to_json(name: str, value: Any) -> Any:
    """A Param's value as JSON: plain values, imports, and settings that are dataclasses."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {"list": [to_json(name, v) for v in value], "tuple": isinstance(value, tuple)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        cls = type(value)
        if "<" not in cls.__qualname__ and cls.__module__ != "__main__":
            return {"make": f"{cls.__module__}:{cls.__qualname__}", "fields": {k: to_json(name, v) for k, v in fields.items()}}
    made: Any = value
    spec = persistence.spec_of(made) if callable(value) else None
    if spec is not None:
        return {"spec": spec, "call": not hasattr(value, "parameters") and not isinstance(value, functools.partial)}
    raise UsageError(
        f"{name}={value!r} cannot be saved: it can only be made again from a class or function of an importable module "
        "with plain arguments (functools.partial keeps the arguments). The fitted model can be saved all the same."
    )


def from_json(value: Any) -> Any:
    """What `to_json` described."""
    if not isinstance(value, dict):
        return value
    if "list" in value:
        items = [from_json(v) for v in value["list"]]
        return tuple(items) if value["tuple"] else items
    if "make" in value:
        return _imported(value["make"])(**{k: from_json(v) for k, v in value["fields"].items()})
    spec = value["spec"]
    call = _imported(spec["import"])
    if value["call"] and not spec["args"] and not spec["kwargs"]:
        return call
    return functools.partial(call, *spec["args"], **spec["kwargs"])


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{path} cannot be imported here: {error}") from error
