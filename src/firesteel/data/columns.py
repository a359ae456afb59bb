"""Which columns hold what, and what they become. A plain description: nothing here reads data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import pyarrow as pa

from firesteel.errors import UsageError, did_you_mean

ROW = "__row"  # the global order of rows, added on their way to the workers


@final
@dataclass(frozen=True)
class Image:
    """Numbers of one shape in a column of bytes, lists or vectors: float32 [B, *shape].

    Bytes (and other uint8 data) stay one byte each in memory and are multiplied by `scale` when a batch is made.

        >>> Image("pixels", (1, 28, 28))
        Image(column='pixels', shape=(1, 28, 28), scale=0.00392156862745098)
    """

    column: str
    shape: tuple[int, ...]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if not self.shape or any(n < 1 for n in self.shape):
            raise UsageError(f"Image({self.column!r}) needs positive sizes, such as (1, 28, 28); got {self.shape}.")


@final
@dataclass(frozen=True)
class Tokens:
    """Lists of integers, all of one length: int64 [B, T].

    >>> Tokens("ids")
    Tokens(column='ids')
    """

    column: str


@final
@dataclass(frozen=True)
class Sequence:
    """Lists of unequal length, of numbers ([B, T]) or of lists of numbers ([B, T, d]), padded with 0 to the batch's longest.

    The model is called as `model(x, lengths)`, lengths int64 [B]. Integers stay int64. A list longer than `max_length` is
    refused, never cut; a list may be empty.

        >>> Sequence("words", max_length=200)
        Sequence(column='words', max_length=200)
    """

    column: str
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise UsageError(
                f"Sequence({self.column!r}, max_length={self.max_length}): give at least 1, or None for any length."
            )


Features = str | list[str] | Image | Tokens | Sequence


@final
@dataclass(frozen=True)
class Columns:
    """What a run reads. A feature by its name is an ML vector, a list of numbers of one length, or one number: [B, d].

    >>> Columns(features=["height", "weight"], label="sex").needed()
    ['height', 'weight', 'sex']
    """

    features: Features = "features"
    label: str | None = "label"
    weight: str | None = None
    validation: str | None = None
    target: Literal["class", "value"] = "class"
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        given: object = self.features  # what was typed, which need not be what the annotation says
        if isinstance(given, list) and not all(isinstance(name, str) for name in given):
            raise UsageError(f"features={given!r}: a list must hold the names of columns only.")
        if not isinstance(given, str | list | Image | Tokens | Sequence):
            raise UsageError(
                f"features={given!r} is a {type(given).__name__}; give a column's name, a list of names, or "
                "firesteel.Image, Tokens or Sequence."
            )

    def feature_names(self) -> list[str]:
        if isinstance(self.features, str):
            return [self.features]
        return list(self.features) if isinstance(self.features, list) else [self.features.column]

    def needed(self) -> list[str]:
        """All columns, each once, in a fixed order."""
        others = [c for c in (self.label, self.weight, self.validation) if c is not None]
        return list(dict.fromkeys([*self.feature_names(), *others]))

    def check(self, schema: pa.Schema) -> None:
        """Raise UsageError for a column that is not there, is there twice, or is of a type that cannot be used.

        >>> Columns().check(pa.schema({"features": pa.list_(pa.float32()), "label": pa.int64()}))
        """
        if not self.feature_names():
            raise UsageError("features is an empty list; name at least one column.")
        for name in self.needed():
            if name not in schema.names:
                known = ", ".join(schema.names)
                raise UsageError(f"there is no column '{name}'.{did_you_mean(name, schema.names)} The columns are: {known}.")
            if schema.names.count(name) > 1:
                raise UsageError(f"there are {schema.names.count(name)} columns '{name}'; rename or drop all but one.")
            if name == ROW:
                raise UsageError(f"the name '{ROW}' is kept for the order of rows; rename the column.")
        for name in self.feature_names():
            self._check_feature(name, schema.field(name).type)
        if self.label is not None:
            kind = schema.field(self.label).type
            if not (_is_number(kind) or is_vector(kind) or _is_numbers(kind)):
                hint = " Index strings first, with Spark ML's StringIndexer say." if _is_text(kind) else ""
                raise UsageError(f"the label column '{self.label}' has the type {kind}; it must hold numbers.{hint}")
        if self.weight is not None and not _is_number(kind := schema.field(self.weight).type):
            raise UsageError(f"the weight column '{self.weight}' has the type {kind}; it must hold numbers.")
        if self.validation is not None and not pa.types.is_boolean(kind := schema.field(self.validation).type):
            raise UsageError(f"the validation column '{self.validation}' has the type {kind}; it must be boolean.")

    def _check_feature(self, name: str, kind: pa.DataType) -> None:
        if isinstance(self.features, Image):
            if not (_is_binary(kind) or is_vector(kind) or _is_numbers(kind)):
                raise UsageError(f"Image('{name}') needs bytes, numbers or a vector; the column has the type {kind}.")
            return
        if isinstance(self.features, Tokens):
            if not (_is_list(kind) and pa.types.is_integer(kind.value_type)):
                raise UsageError(f"Tokens('{name}') needs lists of integers; the column has the type {kind}.")
            return
        if isinstance(self.features, Sequence):
            if not (_is_numbers(kind) or (_is_list(kind) and _is_numbers(kind.value_type))):
                raise UsageError(f"Sequence('{name}') needs lists of numbers or of such lists; the column has the type {kind}.")
            return
        if _is_number(kind) or is_vector(kind) or _is_numbers(kind):
            return
        hint = ""
        if _is_binary(kind):
            hint = f" For images stored as bytes use features=firesteel.Image('{name}', shape=(1, 28, 28))."
        elif _is_list(kind):
            hint = f" For sequences use features=firesteel.Sequence('{name}')."
        elif _is_text(kind):
            hint = " Turn text into numbers first, with Spark ML's StringIndexer or OneHotEncoder say."
        raise UsageError(f"the feature column '{name}' has the type {kind}, neither a number, a list nor a vector.{hint}")


def is_vector(kind: pa.DataType) -> bool:
    """Whether this is Spark ML's vector as Arrow carries it: struct<type, size, indices, values>."""
    names = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    return names == ["type", "size", "indices", "values"]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_number(kind.value_type)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
