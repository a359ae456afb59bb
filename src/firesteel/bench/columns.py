"""What the columns of a foreign table are: which figure, in which unit. Nothing is guessed that a name does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from firesteel.errors import UsageError, did_you_mean

ORDER = ("seconds", "step", "epoch", "samples", "rounds", "bytes_sent")
"""Figures that only grow: by them one knows which of two points is later."""
LOSSES = ("train_loss", "training_loss", "validation_loss")
FIGURES = (*ORDER, *LOSSES, "validation_accuracy", "training_accuracy", "waited_seconds")
TEXTS = ("run", "workload", "metric", "method", "strategy", "optimizer", "world", "virtual", "source", "status", "error")
NUMBERS = ("workers", "batch_size", "seed", "target")
FACTS = (*TEXTS, *NUMBERS)
"""What is said of a whole run, not of a point."""

_ONE = Fraction(1)
_SECONDS = {"us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": _ONE, "min": Fraction(60), "h": Fraction(3600)}
_DECIMAL = {"B": _ONE, "KB": Fraction(10**3), "MB": Fraction(10**6), "GB": Fraction(10**9)}
_BYTES = _DECIMAL | {"KiB": Fraction(2**10), "MiB": Fraction(2**20), "GiB": Fraction(2**30)}
_MANY = {"one": _ONE, "thousand": Fraction(10**3), "million": Fraction(10**6)}
_SHARE = {"fraction": _ONE, "percent": Fraction(1, 100)}
_SPOKEN = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), "us"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **{name.lower(): name for name in _BYTES},
    **dict.fromkeys(("byte", "bytes"), "B"),
    **dict.fromkeys(("%", "percent", "pct"), "percent"),
}
_TIME = {"time", "walltime", "wall", "elapsed", "duration", "runtime", "t"}
_TRAFFIC = {"traffic", "sent"}
_ALONE = {"sec", "secs", "second", "seconds", "minutes", "hours", "milliseconds"}
_BESIDE = {"total", "train", "training", "clock", "relative", "network", "cumulative"}
_SAME = {
    **dict.fromkeys(("val", "valid", "eval"), "validation"),
    **dict.fromkeys(("acc", "accuracies"), "accuracy"),
    "training": "train",
}
_SYNONYMS = {
    "step": "step steps iteration iterations iter iters global_step",
    "epoch": "epoch epochs",
    "samples": "samples samples_seen examples examples_seen",
    "rounds": "rounds round",
    "workers": "workers num_workers n_workers worker_count",
    "seed": "seed random_seed",
    "batch_size": "batch_size batchsize batch",
    "method": "method algorithm",
    "run": "run run_id run_name",
}
_KNOWN = {synonym: field for field, synonyms in _SYNONYMS.items() for synonym in synonyms.split()}
_MEANT = {
    frozenset(("validation", "accuracy")): "validation_accuracy",
    frozenset(("train", "accuracy")): "training_accuracy",
    frozenset(("validation", "loss")): "validation_loss",
    frozenset(("train", "loss")): "train_loss",
}


@final
@dataclass(frozen=True)
class Column:
    """A column of a foreign table."""

    name: str
    """As the table calls it."""
    field: str
    """As points and headers call it."""
    factor: Fraction = _ONE
    """What its numbers are multiplied by."""
    known: bool = True
    """Whether the field is one of ours; else it is a further figure under the table's own name."""


def assign(
    names: Iterable[str], mapping: Mapping[str, str], units: Mapping[str, str], metric: str | None, where: str
) -> list[Column]:
    """What each column is.

    Args:
        names: of the columns.
        mapping: field to column, where the column's name does not tell. `accuracy` is the metric, if that is an accuracy.
        units: field to unit; `accuracy` is all accuracies.
        metric: the figure that is scored; one of the table's own may be.
        where: what errors begin with.

    Raises:
        UsageError: a field, column or unit is unknown, two columns are one field, or a unit cannot be known.

    >>> [(column.field, str(column.factor)) for column in assign(["Time (ms)", "val_acc %"], {}, {}, None, "a.csv, line 1")]
    [('seconds', '1/1000'), ('validation_accuracy', '1/100')]
    """
    names = list(dict.fromkeys(names))
    accuracy = metric if metric and metric.endswith("accuracy") else "validation_accuracy"
    told = {column: accuracy if field == "accuracy" else field for field, column in mapping.items()}
    for name, field in told.items():
        if field not in (*FIGURES, *FACTS, metric):
            fields = ", ".join((*FIGURES, *FACTS))
            raise UsageError(
                f"--map {field}={name}: no field is called {field!r}.{did_you_mean(field, FIGURES)} Fields: {fields}."
            )
        if name not in names:
            raise UsageError(f"{where}: no column is called {name!r}.{did_you_mean(name, names)} Columns: {', '.join(names)}.")
    found = {name: _meaning(name, told, metric) for name in names}
    for field in {field for field, _ in found.values() if field}:
        found = _one_each(field, found, told, where)
    columns = [Column(name, field or name, _factor(name, field, spoken, units, where), field is not None)
               for name, (field, spoken) in found.items()]  # fmt: skip
    fields = {column.field for column in columns}
    for field in units:
        if field not in fields and not (field == "accuracy" and any(is_accuracy(each) for each in fields)):
            raise UsageError(
                f"{where}: --unit {field}={units[field]}, but no column is {field}; --map {field}=COLUMN names it."
            )
    if "kind" in fields:
        raise UsageError(f"{where}: no figure may be called 'kind'; rename the column.")
    return columns


def is_accuracy(field: str) -> bool:
    return field == "accuracy" or field.endswith("_accuracy")


def _words(name: str) -> list[str]:
    """valAcc, "Val/Acc" and val_acc are two words each; a unit stays one."""
    found = list[str]()
    for word in re.findall(r"[^\W_]+|%", name):
        whole = word.lower() in _SPOKEN
        found += [word] if whole else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\WA-Za-z\d]+|%", word)
    return [word.lower() for word in found]


def _meaning(name: str, told: Mapping[str, str], metric: str | None) -> tuple[str | None, str | None]:
    """The field, None if it is none of ours; and the unit that the name says."""
    words = _words(name)
    spoken = [_SPOKEN[word] for word in words if word in _SPOKEN]
    unit = spoken[-1] if spoken else None
    if name in told:
        return told[name], unit
    if name in (*FIGURES, *FACTS, metric):
        return name, unit
    plain = [word for word in words if _SPOKEN.get(word) != "percent"]
    field = _KNOWN.get("_".join(plain)) or _MEANT.get(frozenset(_SAME.get(word, word) for word in plain))
    if field:
        return field, unit
    rest = {word for word in words if word not in _SPOKEN}
    if rest <= _TIME | _BESIDE and (rest & _TIME or _ALONE.intersection(words)):
        return "seconds", unit if unit in _SECONDS else None
    if rest <= _TRAFFIC | _BESIDE and (rest & _TRAFFIC or "bytes" in words):
        return "bytes_sent", unit if unit in _BYTES else None
    return None, unit


def _one_each(
    field: str, found: dict[str, tuple[str | None, str | None]], told: Mapping[str, str], where: str
) -> dict[str, tuple[str | None, str | None]]:
    """What was mapped goes before what has the field's own name, that before what only means it; others keep their names."""
    same = [name for name, (meant, _) in found.items() if meant == field]
    first = [name for name in same if name in told] or [name for name in same if name == field] or same
    if len(first) > 1:
        both = " and ".join(repr(name) for name in first)
        raise UsageError(f"{where}: columns {both} may both be {field}; say which: --map {field}={first[0]!r}.")
    return {name: (None, unit) if name in same and name != first[0] else (meant, unit) for name, (meant, unit) in found.items()}


def _factor(name: str, field: str | None, spoken: str | None, units: Mapping[str, str], where: str) -> Fraction:
    if field is None or field in FACTS:
        return _ONE
    if field in ("seconds", "waited_seconds"):
        scale = _SECONDS
    elif field == "bytes_sent":
        scale = _BYTES
    elif is_accuracy(field):
        scale = _SHARE
    elif field in ORDER:
        scale = _MANY
    else:
        return _ONE
    said = units.get(field) or (units.get("accuracy") if is_accuracy(field) else None)
    if said is not None:
        if said not in scale:
            raise UsageError(f"--unit {field}={said}: it is one of {', '.join(scale)}.")
        return scale[said]
    if spoken in scale:
        return scale[spoken]
    if scale in (_SECONDS, _BYTES):
        raise UsageError(
            f"{where}: column {name!r} is {field}, but its name does not say in which unit; "
            f"--unit {field}=UNIT does, one of {', '.join(scale)}."
        )
    return _ONE
