"""What theory and the thesis say, found again in virtual time."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch
from programs import served

from firesteel import Cluster, Compute, Downpour

STUDIES = sorted((Path(__file__).parents[2] / "examples" / "thesis").glob("*.py"))


def grows(workers: int, rate: float) -> bool:
    """SGD on x^2 / 2 from centers that are workers - 1 pushes old: whether |x| is larger in the end than in the middle."""
    rounds, seen = 400, []

    async def program(net, member):
        center = await net.pull()
        for _ in range(rounds):
            member.meter(1)(1.0)
            center = await net.exchange(center * -rate)
            seen.append(abs(float(center)))

    served(Cluster(workers, Compute(1e-2)), program, torch.ones(1, dtype=torch.float64), Downpour(), max_growth=1e300)
    half = len(seen) // 2
    return not all(map(math.isfinite, seen)) or max(seen[half + half // 2 :]) > max(seen[half : half + half // 2])


@pytest.mark.parametrize("workers", [1, 5, 10, 20])
def test_delayed_sgd_is_stable_up_to_its_limit(workers):
    """Stable iff eta h < 2 sin(pi / (2 (2 tau + 1))), tau = N - 1; by bisection, within 2 %."""
    low, high = 0.01, 3.0
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if grows(workers, middle) else (middle, high)
    assert low == pytest.approx(2 * math.sin(math.pi / (2 * (2 * workers - 1))), rel=0.02)


LONG = [pytest.param(p, marks=pytest.mark.soak) if p.stem == "agn_window" else p for p in STUDIES]  # more than a minute


@pytest.mark.parametrize("script", LONG, ids=lambda p: p.stem)
def test_the_thesis_s_claims_hold_here(script, capsys):
    runpy.run_path(str(script))
    said = capsys.readouterr().out
    assert "Verdict: holds" in said, said


def test_there_are_four_of_them():
    assert [p.stem for p in STUDIES] == ["adag_removes_early_divergence", "aeasgd_stability", "agn_window", "downpour_diverges"]
