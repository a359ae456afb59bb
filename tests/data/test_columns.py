"""A description that cannot work is refused from the schema alone, before a row is read."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from firesteel import UsageError
from firesteel.data.columns import Columns, Image, Sequence, Tokens

VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)
SCHEMA = pa.schema(
    {
        "number": pa.float64(),
        "whole": pa.int16(),
        "flag": pa.bool_(),
        "vector": VECTOR,
        "list": pa.list_(pa.float32()),
        "fixed": pa.list_(pa.float32(), 4),
        "ids": pa.list_(pa.int32()),
        "steps": pa.list_(pa.list_(pa.float32(), 3)),
        "bytes": pa.binary(),
        "text": pa.string(),
        "when": pa.timestamp("us"),
        "words": pa.list_(pa.string()),
        "point": pa.struct([("x", pa.float32())]),
        "money": pa.decimal128(9, 2),
        "label": pa.int64(),
    }
)

ACCEPTED = [
    *[Columns(name) for name in ("number", "whole", "flag", "vector", "list", "fixed", "ids")],
    Columns(["number", "vector", "list"]),
    *[Columns(Image(name, (2, 2))) for name in ("bytes", "vector", "list", "fixed")],
    Columns(Tokens("ids")),
    *[Columns(Sequence(name)) for name in ("list", "ids", "steps")],
    Columns("list", label=None),
    Columns("list", "vector", target="value"),
    Columns("list", "number", weight="whole", validation="flag"),
]

REFUSED = {
    "a column that is not there": (Columns("lable"), r"no column 'lable'. Did you mean 'label'\? The columns are: number, "),
    "a label that is not there": (Columns("list", "Label"), "no column 'Label'. Did you mean 'label'"),
    "no columns": (Columns([]), "features is an empty list"),
    "text": (Columns("text"), "'text' has the type string.*StringIndexer"),
    "bytes without a shape": (Columns("bytes"), r"'bytes' has the type binary.*firesteel.Image\('bytes', shape"),
    "steps without Sequence": (Columns("steps"), r"'steps' has the type list.*firesteel.Sequence\('steps'\)"),
    "a time": (Columns("when"), "'when' has the type timestamp"),
    "a list of text": (Columns("words"), "'words' has the type list<.*string>"),
    "a struct": (Columns("point"), "'point' has the type struct"),
    "a decimal": (Columns("money"), "'money' has the type decimal"),
    "one bad column of many": (Columns(["number", "text"]), "'text' has the type string"),
    "an image of text": (Columns(Image("text", (1,))), r"Image\('text'\) needs bytes"),
    "tokens that are floats": (Columns(Tokens("list")), r"Tokens\('list'\) needs lists of integers"),
    "a sequence of one number": (Columns(Sequence("number")), r"Sequence\('number'\) needs lists"),
    "a sequence of words": (Columns(Sequence("words")), r"Sequence\('words'\) needs lists of numbers"),
    "a label of text": (Columns("list", "text"), "label column 'text' has the type string.*StringIndexer"),
    "a label of bytes": (Columns("list", "bytes"), "label column 'bytes' has the type binary"),
    "a weight of lists": (Columns("list", weight="list"), "weight column 'list' has the type list"),
    "an indicator of numbers": (Columns("list", validation="whole"), "validation column 'whole'.*must be boolean"),
}


@pytest.mark.parametrize("columns", ACCEPTED, ids=str)
def test_accepted(columns):
    columns.check(SCHEMA)
    assert pickle.loads(pickle.dumps(columns)) == columns


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    columns, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        columns.check(SCHEMA)


def test_names_that_cannot_be_used():
    with pytest.raises(UsageError, match="2 columns 'list'; rename"):
        Columns("list").check(SCHEMA.append(pa.field("list", pa.float32())))
    with pytest.raises(UsageError, match="'__row' is kept for the order of rows"):
        Columns("__row").check(SCHEMA.append(pa.field("__row", pa.int64())))
    Columns("number").check(SCHEMA.append(pa.field("list", pa.float32())))  # a twin that nobody asks for does no harm


@pytest.mark.parametrize("features", [3, None, ("a", "b"), ["a", 1], {"a"}], ids=str)
def test_features_of_another_kind(features):
    with pytest.raises(UsageError, match="features="):
        Columns(features)


def test_impossible_shapes():
    for shape in ((), (0,), (3, -1)):
        with pytest.raises(UsageError, match="positive sizes"):
            Image("x", shape)
    with pytest.raises(UsageError, match="give at least 1"):
        Sequence("x", max_length=0)


def test_needed_names_each_column_once():
    assert Columns(["b", "a"], "a", "w", "v").needed() == ["b", "a", "w", "v"]
    assert Columns(Image("p", (1,)), None).needed() == ["p"]
