"""Other people's tables: what is read, in which unit, and how what cannot be read is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firesteel.bench.external import import_file
from firesteel.bench.results import read
from firesteel.errors import UsageError

CURVE = "epoch,seconds,val_acc,train_loss\n1,2.5,0.5,1.25\n2,5.0,0.75,\n3,7.5,0.875,0.25\n"


def take(tmp_path, text, ending=".csv", mapping=None, name="theirs", **rest):
    """What becomes of a file, and what was told of it."""
    path = tmp_path / f"table{ending}"
    _ = path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    told = []
    results = import_file(path, name, tmp_path / "out", mapping, **{"workload": "w", "tell": told.append} | rest)
    return results, told


def refused(tmp_path, text, words, ending=".csv", mapping=None, **rest):
    with pytest.raises(UsageError) as caught:
        _ = take(tmp_path, text, ending, mapping, **rest)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_curve(tmp_path):
    (result,), told = take(tmp_path, CURVE, method="DDP", workers=8)
    assert result.points == (
        {"epoch": 1, "seconds": 2.5, "validation_accuracy": 0.5, "train_loss": 1.25},
        {"epoch": 2, "seconds": 5.0, "validation_accuracy": 0.75, "train_loss": None},
        {"epoch": 3, "seconds": 7.5, "validation_accuracy": 0.875, "train_loss": 0.25},
    )
    assert (result.method, result.workers, result.workload, result.metric) == ("DDP", 8, "w", "validation_accuracy")
    assert (result.seed, result.target, result.virtual, result.external) == (None, None, False, True)
    assert result.header["source"] == "table.csv" and not told
    assert read(tmp_path / "out") == [result]


def test_several_runs_in_a_file(tmp_path):
    rows = [
        "method,workers,seed,epoch,validation_accuracy,gpu",
        "A,2,0,1,.5,V100",
        "B,2,0,1,.6,V100",
        "A,2,0,2,.7,V100",
        "A,2,1,1,.8,V100",
    ]
    text = "\n".join(rows) + "\n"
    results, _ = take(tmp_path, text)
    assert [(r.method, r.seed, r.column("validation_accuracy")) for r in results] == [
        ("A", 0, [0.5, 0.7]),
        ("B", 0, [0.6]),
        ("A", 1, [0.8]),
    ]
    assert [r.id for r in results] == ["theirs-0001", "theirs-0002", "theirs-0003"]
    assert results[0].header["settings"] == {"gpu": "V100"}


def test_runs_without_a_method_are_called_by_their_names(tmp_path):
    results, _ = take(tmp_path, "run,step,val_acc\nfirst,1,.5\nsecond,1,.5\n")
    assert [r.method for r in results] == ["first", "second"]


def test_json_lines(tmp_path):
    lines = [{"step": 1, "val": {"acc": 0.5}, "auc": 0.75}, {"step": 2, "val": {"acc": math.nan}}]
    (result,), _ = take(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), ".jsonl", metric="auc")
    assert result.points == ({"step": 1, "validation_accuracy": 0.5, "auc": 0.75}, {"step": 2, "validation_accuracy": None})


def test_final_numbers(tmp_path):
    text = "method,hours,val_acc\nA,1,.5\nA,2,.6\nB,1,.7\n"
    results, _ = take(tmp_path, text, final=True)
    assert [r.points for r in results] == [
        ({"seconds": 3600.0, "validation_accuracy": 0.5},),
        ({"seconds": 7200.0, "validation_accuracy": 0.6},),
        ({"seconds": 3600.0, "validation_accuracy": 0.7},),
    ]
    refused(tmp_path / "x", "method,val_acc\nA,.5\nA,.6\n", ["line 3", "--final", "--map run=COLUMN"])


@pytest.fixture(autouse=True)
def _places(tmp_path):
    (tmp_path / "x").mkdir()


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("seconds", "2", 2),
        ("Wall time (ms)", "2", 0.002),
        ("elapsed_s", "2", 2),
        ("time [min]", "2", 120),
        ("TrainingTimeHours", "2", 7200),
        ("runtime us", "2", 2e-6),
    ],
)
def test_a_unit_in_the_name(tmp_path, name, value, seconds):
    (result,), _ = take(tmp_path, f"{name},val_acc\n{value},.5\n")
    assert result.points[0]["seconds"] == seconds


@pytest.mark.parametrize(("unit", "seconds"), [("ms", 0.003), ("s", 3), ("min", 180), ("h", 10800), ("us", 3e-6)])
def test_a_unit_that_is_said(tmp_path, unit, seconds):
    (result,), _ = take(tmp_path, "Wall time,acc\n3,.5\n", mapping={"accuracy": "acc"}, units={"seconds": unit})
    assert result.points == ({"seconds": seconds, "validation_accuracy": 0.5},)


@pytest.mark.parametrize("name", ["time", "wall_time", "t", "Elapsed", "training time"])
def test_a_unit_is_never_guessed(tmp_path, name):
    text = f"{name},val_acc\n1,.5\n"
    refused(tmp_path, text, ["table.csv, line 1", repr(name), "--unit seconds=UNIT", "us, ms, s, min, h"])
    refused(tmp_path, text, ["fortnight", "one of us, ms"], units={"seconds": "fortnight"})


def test_bytes_and_samples(tmp_path):
    (result,), _ = take(tmp_path, "samples,traffic MiB,val_acc\n2,3,.5\n", units={"samples": "thousand"})
    assert result.points == ({"samples": 2000, "bytes_sent": 3 * 2**20, "validation_accuracy": 0.5},)
    refused(tmp_path / "x", "traffic,val_acc\n3,.5\n", ["--unit bytes_sent=UNIT", "'traffic'"])


def test_per_cent_is_said_or_in_the_name(tmp_path):
    refused(
        tmp_path,
        "epoch,val_acc\n1,.5\n2,97.5\n",
        ["table.csv, line 3", "'val_acc'", "97.5", "--unit validation_accuracy=percent"],
    )
    refused(tmp_path, "epoch,val_acc\n1,.5\n2,97.5\n", ["line 3", "percent"], skip_bad=True)  # no bad row: a missing unit
    both = "epoch,val_acc,train_acc\n1,98.18,.5\n"
    (result,), _ = take(tmp_path, both, units={"accuracy": "percent"})
    assert result.points == ({"epoch": 1, "validation_accuracy": 0.9818, "training_accuracy": 0.005},)
    (result,), _ = take(tmp_path, "epoch,val acc (%)\n1,98.18\n", replace=True)
    assert result.points[0]["validation_accuracy"] == 0.9818
    refused(tmp_path / "x", "epoch,val acc (%)\n1,101\n", ["line 2", "101 is no accuracy"])


def test_what_a_name_does_not_say_is_asked_for(tmp_path):
    for name in ("accuracy", "acc", "test_accuracy"):
        refused(tmp_path, f"epoch,{name}\n1,.5\n", ["line 1", "--map validation_accuracy=COLUMN", name])
    refused(tmp_path, CURVE, ["line 2", "--workload NAME"], workload=None)
    (result,), _ = take(tmp_path, "epoch,test_accuracy\n1,.5\n", metric="test_accuracy")
    assert result.points == ({"epoch": 1, "test_accuracy": 0.5},)


def test_unknown_columns_stay_as_figures_under_their_own_names(tmp_path):
    (result,), told = take(tmp_path, "epoch,val_acc,lr,when\n1,.5,1e-3,monday\n2,.6,1e-4,tuesday\n")
    assert [point["lr"] for point in result.points] == [1e-3, 1e-4]
    assert len(told) == 1 and "'when'" in told[0] and "left out" in told[0]


def test_flags_that_do_not_fit(tmp_path):
    refused(
        tmp_path, CURVE, ["line 1", "no column is called 'val_ac'", "Did you mean 'val_acc'?"], mapping={"accuracy": "val_ac"}
    )
    refused(tmp_path, CURVE, ["no field is called 'secnds'", "Did you mean 'seconds'?"], mapping={"secnds": "seconds"})
    refused(tmp_path, CURVE, ["line 1", "no column is bytes_sent"], units={"bytes_sent": "MB"})
    refused(tmp_path, "time_ms,time_s,val_acc\n1,1,1\n", ["line 1", "'time_ms' and 'time_s'", "--map seconds='time_ms'"])
    refused(tmp_path, CURVE, ["--as '../x'"], name="../x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch,val_acc\n1,.5\n2,abc\n", ["line 3, column 'val_acc'", '"abc" is no number']),
        ("epoch,val_acc\n1,.5\n2\n", ["line 3: 1 fields, but the header names 2"]),
        ("epoch,val_acc\n1,.5\n2,.5,.6\n", ["line 3: 3 fields"]),
        ('epoch,val_acc\n1,.5\n2,"0,5"\n', ["line 3", "decimal comma"]),
        ('epoch,val_acc\n1,.5\n2,"x"y\n', ["line 3", "no CSV"]),
        ("epoch,val_acc\n1,.5\n1_0,.5\n", ["line 3, column 'epoch'"]),
        ("epoch,workers,val_acc\n1,2,.5\n2,2.5,.5\n", ["line 3, column 'workers'", "no whole number"]),
        ("epoch,status,val_acc\n1,finished,.5\n2,fine,.5\n", ["line 3, column 'status'", "no end of a run"]),
        ("epoch,virtual,val_acc\n1,true,.5\n2,maybe,.5\n", ["line 3, column 'virtual'", "neither true nor false"]),
    ],
)
def test_a_bad_row_is_refused_or_told_of(tmp_path, text, words):
    refused(tmp_path, text, [*words, "table.csv", "--skip-bad"])
    (result,), told = take(tmp_path, text, skip_bad=True)
    assert len(result.points) == 1
    assert len(told) == 1 and told[0].startswith("skipped: ") and all(word in told[0] for word in words)


@pytest.mark.parametrize(
    ("line", "word"),
    [('{"epoch": 2, "val_acc": 0.', "no JSON"), ("[1]", "one object"), ('{"epoch": 2, "epoch": 3}', "stands twice"),
     ('{"epoch": true, "val_acc": 1}', "true is no number"), ('{"epoch": [2], "val_acc": 1}', "[2] is no number")],
)  # fmt: skip
def test_a_bad_line_of_json(tmp_path, line, word):
    text = '{"epoch": 1, "val_acc": 0.5}\n' + line + "\n"
    refused(tmp_path, text, ["table.jsonl, line 2", word, "--skip-bad"], ".jsonl")
    (result,), told = take(tmp_path, text, ".jsonl", skip_bad=True)
    assert len(result.points) == 1 and len(told) == 1 and "line 2" in told[0]


@pytest.mark.parametrize(
    ("data", "ending", "words"),
    [
        (b"", ".csv", ["table.csv, line 1", "empty"]),
        (b"\n\n", ".csv", ["line 1", "empty"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ".png", ["table.png, line 1", "not UTF-8"]),
        (b"epoch,val_acc\n1,.5\0\n", ".csv", ["line 2", "zero bytes"]),
        ("epoch,val_acc,who\n1,.5,x\n2,.5,Jürgen\n".encode("latin-1"), ".csv", ["line 3", "not UTF-8"]),
        (b"epoch;val_acc\n1;.5\n", ".csv", ["line 1", "--delimiter ';'"]),
        (b"epoch\tval_acc\n1\t.5\n", ".csv", ["line 1", "--delimiter '\\t'"]),
        (b"1,.5\n2,.6\n", ".csv", ["line 1", "to name the columns"]),
        (b"epoch,,val_acc\n1,2,.5\n", ".csv", ["line 1", "column 2 has no name"]),
        (b"epoch,val_acc,epoch\n1,.5,1\n", ".csv", ["line 1", "two columns are called 'epoch'"]),
        (b"epoch,val_acc\n", ".csv", ["no row"]),
        (b"epoch,val_acc\n1,x\n", ".csv", ["line 2"]),
        (b'[{"epoch": 1}]\n', ".json", ["line 1", "one object"]),
        (b'{"kind": "trial", "format": 1}\n', ".jsonl", ["line 1", "Firesteel's own"]),
        (b"SQLite format 3\0 and no more", ".db", ["table.db", "cannot be read"]),
        (b"epoch,val_acc\n5,.5\n4,.6\n", ".csv", ["line 3", "epoch goes back from 5 to 4", "--map run=COLUMN"]),
        (b"epoch,val_acc,kind\n1,.5,3\n", ".csv", ["line 1", "'kind'"]),
    ],
)
def test_foreign_files(tmp_path, data, ending, words):
    refused(tmp_path, data, words, ending)


def test_nothing_there(tmp_path):
    for path, word in ((tmp_path / "none.csv", "no such file"), (tmp_path, "neither TensorBoard's")):
        with pytest.raises(UsageError, match=word):
            _ = import_file(path, "a", tmp_path / "out", workload="w")


def test_tabs_semicolons_and_what_spreadsheets_write(tmp_path):
    for number, (text, ending, delimiter) in enumerate(
        [
            ("epoch\tval_acc\n1\t.5\n", ".tsv", None),
            ("epoch;val_acc\n1;.5\n", ".csv", ";"),
            ("\ufeffepoch,val_acc\r\n1,.5\r\n", ".csv", None),
        ]
    ):
        (result,), told = take(tmp_path, text, ending, name=f"n{number}", delimiter=delimiter)
        assert result.points == ({"epoch": 1, "validation_accuracy": 0.5},) and not told


def test_the_same_name_again(tmp_path):
    _ = take(tmp_path, "run,epoch,val_acc\na,1,.5\nb,1,.5\n")
    with pytest.raises(UsageError, match=r"theirs is there already; --replace"):
        _ = take(tmp_path, CURVE)
    assert len(read(tmp_path / "out")) == 2
    with pytest.raises(UsageError, match="line 2"):  # what cannot be read replaces nothing
        _ = take(tmp_path, "epoch,val_acc\nx,.5\n", replace=True)
    assert len(read(tmp_path / "out")) == 2
    results, _ = take(tmp_path, CURVE, replace=True)
    assert read(tmp_path / "out") == results and len(results) == 1


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 10_000))
def test_a_file_that_is_cut_off_never_loses_a_run_silently(tmp_path, ending, cut):
    rows = [(run, epoch, epoch * 2.125, 0.5 + epoch / 64) for run in ("a", "b", "c") for epoch in range(1, 6)]
    if ending == ".csv":
        whole = "run,epoch,seconds,val_acc\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows)
    else:
        names = ("run", "epoch", "seconds", "val_acc")
        whole = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    text = whole[: 1 + cut % len(whole)]
    kept = [line for line in text.split("\n")[ending == ".csv" :] if line]
    try:
        results, told = take(tmp_path, text, ending, replace=True)
    except UsageError as error:
        assert "line " in str(error) or "no row" in str(error)
        return
    points = [(r.method, p["epoch"], p["seconds"], p["validation_accuracy"]) for r in results for p in r.points]
    assert len(points) == len(kept)  # every line that is left, even in part, is in
    assert points == rows[: len(points)] or (points[:-1] == rows[: len(points) - 1] and "cut off" in told[0])
