"""The recipes that come with Firesteel: what they would run, and that claims need no complete results."""

from __future__ import annotations

from pathlib import Path

import pytest

from firesteel.bench import recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("admm", "asynchronous", "averaging", "parallelism", "quick", "vector_free")
SIZES = {"quick": 41, "asynchronous": 165}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_trials_each_of_its_own_name(name):
    found = recipe.load(RECIPES / f"{name}.py")
    assert found.title and found.about and len(found.trials) >= 6
    assert len(found.trials) == SIZES.get(name, len(found.trials))
    assert recipe.load(RECIPES / f"{name}.py").trials.keys() == found.trials.keys()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "quick"])
def test_claims_of_no_results_are_not_measured(name):
    found = recipe.load(RECIPES / f"{name}.py")
    assert found.claims is not None
    assert {claim.verdict for claim in found.claims([])} <= {"not measured"}
