"""`firesteel bench import` and `export`, as they are typed."""

from __future__ import annotations

import importlib.util

import pytest
import tyro

from firesteel.bench.results import read
from firesteel.cli.bench_export import Export
from firesteel.cli.bench_import import Import
from firesteel.errors import UsageError


def test_import(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _ = (tmp_path / "their table.csv").write_text("Wall time,acc,n\n1500,97.5,4\n3000,98.5,4\n")
    typed = ["their table.csv", "--out", "out", "--as", "gpu", "--map", "seconds=Wall time", "accuracy=acc", "workers=n"]
    typed += ["--unit", "seconds=ms", "accuracy=percent", "--workload", "mnist-mlp", "--method", "DDP", "--seconds", "virtual"]
    assert tyro.cli(Import, args=typed).run() == 0
    (result,) = read("out")
    assert result.points == ({"seconds": 1.5, "validation_accuracy": 0.975}, {"seconds": 3.0, "validation_accuracy": 0.985})
    assert (result.method, result.workers, result.virtual, result.workload) == ("DDP", 4, True, "mnist-mlp")
    assert "runs 1 -> out/external/gpu" in capsys.readouterr().err
    assert tyro.cli(Import, args=["published:su-chen-2015", "--out", "out"]).run() == 0
    assert len(read("out")) == 3 and (tmp_path / "out/external/su-chen-2015/0002.jsonl").exists()


def test_the_names_of_what_is_published(tmp_path):
    with pytest.raises(UsageError, match=r"Names: .*hermans-2017"):
        _ = tyro.cli(Import, args=["published:", "--as", "a", "--out", str(tmp_path)]).run()


@pytest.mark.parametrize(("pair", "word"), [("seconds", "FIELD=COLUMN"), ("=x", "FIELD=COLUMN"), ("seconds=", "FIELD=COLUMN")])
def test_pairs(pair, word, tmp_path):
    with pytest.raises(UsageError, match=word):
        _ = Import("x.csv", str(tmp_path), map=[pair]).run()
    with pytest.raises(UsageError, match="twice"):
        _ = Import("x.csv", str(tmp_path), unit=["seconds=s", "seconds=ms"]).run()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="the package tensorboard is not installed: pip install 'firesteel[track]'",
)
def test_export(tmp_path, capsys):
    assert Import("published:hermans-2017", str(tmp_path / "out")).run() == 0
    assert tyro.cli(Export, args=[str(tmp_path / "out"), "--to", "tensorboard", "--out", str(tmp_path / "logs")]).run() == 0
    assert len(list((tmp_path / "logs").glob("*/*tfevents*"))) == 8
    assert "runs 8 -> " in capsys.readouterr().err
