"""Recipes: Python files that say which trials an experiment has, and what is claimed of them.

A recipe has a docstring (its title is the first line), `matrix() -> list[Trial]`, and, if it makes claims,
`claims(results) -> list[Claim]`, which is given all results of the folder, somebody else's among them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
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
    choices: tuple[str, ...]
    """NAME=VALUE of its `matrix`, as they were given: another process loads it with the same."""
    published: dict[str, dict[str, Any]]
    """Other people's results that belong beside these: names of `firesteel.bench.published`, and how to import each."""

    @property
    def digest(self) -> str:
        """Of all trials' names: the same in every process that has read the same recipe."""
        return hashlib.sha256("\n".join(self.trials).encode()).hexdigest()


def load(path: str | Path, choices: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        choices: arguments of its `matrix`, NAME=VALUE each.

    Raises:
        UsageError: there is no such file, it cannot be run, it has no `matrix`, or that gives no trials, some twice, or some
            that cannot be told from others by their settings.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no recipe {file}; a recipe is a Python file with matrix() -> list of Trial.")
    module = _run(file)
    matrix = getattr(module, "matrix", None)
    if not callable(matrix):
        raise UsageError(f"{file} has no function matrix(): a recipe has one, which returns a list of Trial.")
    known = inspect.signature(matrix).parameters
    given = dict(_choice(each) for each in choices)
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise UsageError(f"{file}: matrix() has no argument {name!r}; it has {has}.")
    found: Any = matrix(**given)
    if not isinstance(found, list) or not found or not all(isinstance(each, Trial) for each in found):
        raise UsageError(f"{file}: matrix() returned {_told(found)}; it returns a list of Trial, one at least.")
    trials: dict[str, Trial] = {}
    for number, trial in enumerate(found):
        if trial.id in trials:
            raise UsageError(f"{file}: trial {number} of matrix() is there twice: {trial.id}. Give it another seed, or a note.")
        trials[trial.id] = trial
    _check_names(file, trials)
    text = inspect.getdoc(module) or file.stem
    title, _, about = text.partition("\n")
    published = dict(getattr(module, "PUBLISHED", {}))
    return Recipe(
        str(file), title.rstrip("."), about.strip(), trials, getattr(module, "claims", None), tuple(choices), published
    )


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


def _choice(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r}: write NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _check_names(file: Path, trials: dict[str, Trial]) -> None:
    """A trial is known again by its settings, so these must be the same text in every process and tell it from others."""
    workloads: dict[str, dict[str, Any]] = {}
    for name, trial in trials.items():
        header = json.dumps({key: value for key, value in trial.header().items() if key != "environment"})
        nameless = next((word for word in ("<lambda>", " at 0x") if word in header), None)
        if nameless is not None:
            raise UsageError(
                f"{file}: the settings of {name} hold something without a name of its own ({nameless.strip()}), so it could "
                "not be known again. Use functions with names, and functools.partial."
            )
        own = trial.workload.described()
        if workloads.setdefault(trial.workload.name, own) != own:
            raise UsageError(
                f"{file}: two workloads are called {trial.workload.name!r} and differ; give each a name of its own."
            )


def _told(found: Any) -> str:
    if isinstance(found, list):
        odd = next((each for each in found if not isinstance(each, Trial)), None)
        return "an empty list" if odd is None else f"a list with {odd!r}"
    return f"a {type(found).__name__}"
