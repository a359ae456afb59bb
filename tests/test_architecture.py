"""The tree is the architecture: who may import whom, and what the public name holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import firesteel

SOURCE = Path(firesteel.__file__).parent


def imports(path: Path) -> set[str]:
    """What a file imports when it is imported itself: names under TYPE_CHECKING do not count, those inside functions do."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FILES = {p.relative_to(SOURCE).as_posix(): imports(p) for p in SOURCE.rglob("*.py")}

# No file under the first may import anything under the second.
FORBIDDEN = [
    ("net/", ["spark", "local", "ml", "cli", "strategies", "train", "data"]),
    ("data/", ["net", "strategies", "spark", "local", "ml", "cli", "train", "worker"]),
    ("strategies/", ["net.gang", "net.shared", "spark", "local", "ml", "cli", "train", "data", "process"]),
    ("parts/", ["net.gang", "net.shared", "strategies", "spark", "local", "ml", "cli", "train", "sim", "gang_process"]),
    ("local/", ["spark", "ml", "cli", "train"]),
    ("spark/", ["local", "ml", "cli", "train"]),
    ("models/", ["net", "spark", "local", "ml", "cli", "train", "data", "worker"]),
    ("ml/", ["cli"]),
    ("bench/", ["ml", "cli"]),
    ("sim/", ["bench"]),
    ("strategies/", ["bench"]),
    ("worker.py", ["net.gang", "spark", "local", "strategies", "train"]),
    ("process.py", ["spark", "local", "train", "ml", "cli"]),
]


@pytest.mark.parametrize(("where", "others"), FORBIDDEN, ids=[w for w, _ in FORBIDDEN])
def test_arrows(where, others):
    for name, found in FILES.items():
        if name.startswith(where):
            for other in others:
                bad = {i for i in found if i == f"firesteel.{other}" or i.startswith(f"firesteel.{other}.")}
                assert not bad, f"{name} imports {bad}"


def test_strategies_see_only_the_protocol_the_worker_and_torch():
    ours = ("net.protocol", "worker", "errors", "strategies", "models", "parts")
    allowed = ("torch", *(f"firesteel.{name}" for name in ours))
    standard = set(sys.stdlib_module_names)
    for name, found in FILES.items():
        if name.startswith("strategies/"):
            for module in found:
                assert module.startswith(allowed) or module.split(".")[0] in standard, f"{name} imports {module}"


def test_spark_is_imported_only_where_it_is_spoken():
    speak = ("spark/", "ml/", "data/frame.py")
    for name, found in FILES.items():
        if any(m == "pyspark" or m.startswith("pyspark.") for m in found):
            assert name.startswith(speak), name


def test_the_public_namespace_is_exact():
    for name in firesteel.__all__:
        assert hasattr(firesteel, name), name
    modules = {"annotations"} | {p.stem for p in SOURCE.iterdir() if p.name != "__init__.py"}
    public = {n for n in vars(firesteel) if not n.startswith("_")} - (modules - set(firesteel.__all__))
    assert public == set(firesteel.__all__)


@pytest.mark.parametrize("statement", ["import firesteel", "import firesteel.cli"])
def test_importing_us_imports_no_heavy_stranger(statement):
    code = f"{statement}; import sys; print([m for m in ('pyspark', 'matplotlib', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_readable():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
