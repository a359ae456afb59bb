"""Recipes: Python files that say which trials an experiment has, and what is claimed of them.

A recipe has a docstring (its title is the first line), `matrix() -> list[Trial]`, and, if it makes claims,
`claims(results) -> list[Claim]`, which is given all results of the folder, somebody else's among them.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import cloudpickle

from firesteel.bench.claims import Claim
from firesteel.bench.results import Result
from firesteel.bench.trial import Trial
from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class Recipe:
    """A recipe's file, read."""

    path: str
    title: str
    about: str
    trials: dict[str, Trial]
    """By their names, in order."""
    claims: Callable[[list[Result]], list[Claim]] | None
    published: dict[str, dict[str, Any]]
    """Other people's results that belong beside these: names of `firesteel.bench.published`, and how to import each."""


def load(path: str | Path, **choices: Any) -> Recipe:
    """Read a recipe.

    Args:
        choices: arguments of its `matrix`, from the command line.

    Raises:
        UsageError: there is no such file, it cannot be run, it has no `matrix`, or that gives no trials, or some twice.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no recipe {file}; a recipe is a Python file with matrix() -> list of Trial.")
    module = _run(file)
    matrix = getattr(module, "matrix", None)
    if not callable(matrix):
        raise UsageError(f"{file} has no function matrix(): a recipe has one, which returns a list of Trial.")
    known = inspect.signature(matrix).parameters
    for name in choices:
        if name not in known:
            has = ", ".join(known) or "none"
            raise UsageError(f"{file}: matrix() has no argument {name!r}; it has {has}.")
    found: Any = matrix(**choices)
    if not isinstance(found, list) or not found or not all(isinstance(each, Trial) for each in found):
        raise UsageError(f"{file}: matrix() returned {_told(found)}; it returns a list of Trial, one at least.")
    trials: dict[str, Trial] = {}
    for number, trial in enumerate(found):
        if trial.id in trials:
            raise UsageError(f"{file}: trial {number} of matrix() is there twice: {trial.id}. Give it another seed, or a note.")
        trials[trial.id] = trial
    text = inspect.getdoc(module) or file.stem
    title, _, about = text.partition("\n")
    published = dict(getattr(module, "PUBLISHED", {}))
    return Recipe(str(file), title.rstrip("."), about.strip(), trials, getattr(module, "claims", None), published)


def _run(file: Path) -> Any:
    """The recipe as a module by the name of its file. Workers, which cannot import it, are sent what it defines."""
    spec = importlib.util.spec_from_file_location(file.stem, file.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(file.parent.absolute())
    if folder not in sys.path:  # it may import what lies beside it, and so may the workers
        sys.path.insert(0, folder)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    except Exception as error:
        raise UsageError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    for other in list(sys.modules.values()):
        place = getattr(other, "__file__", None)
        if place is not None and Path(place).parent == file.parent.absolute():
            cloudpickle.register_pickle_by_value(other)
    return module


def _told(found: Any) -> str:
    if isinstance(found, list):
        odd = next((each for each in found if not isinstance(each, Trial)), None)
        return "an empty list" if odd is None else f"a list with {odd!r}"
    return f"a {type(found).__name__}"
