"""What a recipe claims, what was published, what was measured, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from firesteel.errors import UsageError

Verdict = Literal["shown", "not shown", "no difference shown", "not measured"]
VERDICTS = ("shown", "not shown", "no difference shown", "not measured")


@final
@dataclass(frozen=True)
class Claim:
    """One claim of an experiment.

    >>> Claim("85 % at the 10th sweep", "85 %", "87.5 %", "shown").verdict
    'shown'
    """

    text: str
    published: str
    """What the source reports."""
    measured: str
    """What the results of this folder say, in figures."""
    verdict: Verdict
    why: str = ""
    """Why it is not reached, or under which conditions it holds."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UsageError(f"Claim(verdict={self.verdict!r}): it is one of {', '.join(VERDICTS)}.")
