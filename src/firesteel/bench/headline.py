"""The sentences that are read in ten seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from firesteel.bench import score, statistics, texts
from firesteel.bench.cells import goal, median_cost, ranked, said
from firesteel.bench.configurations import Configuration, by_seconds


def headline(configurations: Sequence[Configuration]) -> list[str]:
    """Who was first to the target and whether that is more than chance, for each workload and kind of seconds.

    Somebody else's results, measured on other machines, are named beside and not compared.
    """
    found = list[str]()
    workloads = list(dict.fromkeys(one.workload for one in configurations))
    for workload in workloads:
        begin = f"{workload}: " if len(workloads) > 1 else ""
        for kind, members in by_seconds(one for one in configurations if one.workload == workload).items():
            found += [begin + sentence for sentence in _sentences(kind, members)]
    return found


def _sentences(kind: str, members: Sequence[Configuration]) -> list[str]:
    own = [one for one in members if not one.external] or list(members)
    first, *others = ranked(own)
    seconds = median_cost(first)
    if not math.isfinite(seconds):
        return [_none_reached(own)]
    times = [score.cost(run) for run in first.results]
    begin = f"{first.label} reached {goal(first)}{' first' if others else ''}: {texts.digits(seconds)} {kind} ({_seeds(times)})"
    found = _beside(begin, first, others[0], others) if others else [f"{begin}."]
    for one in ranked(one for one in members if one not in own):
        if median_cost(one) < seconds:
            found.append(f"{one.label}, measured elsewhere, reached it in {texts.digits(median_cost(one))} {kind}.")
    return found


def _beside(begin: str, first: Configuration, rival: Configuration, others: Sequence[Configuration]) -> list[str]:
    """The winner's sentence, ended by what sets it apart from the next one, if anything does."""
    compared = statistics.compare(*([score.cost(run) for run in one.results] for one in (first, rival)))
    chance = "" if compared.seeds >= statistics.FEW else f" ({statistics.few(compared.seeds)} on the difference)"
    if not math.isfinite(median_cost(rival)):
        some = any(score.reached(run) for one in others for run in one.results)
        return [f"{begin}; no other reached it{' with most of its seeds' if some else ''}{chance}."]
    if chance:
        return [f"{begin}; {rival.label} came next with {texts.digits(median_cost(rival))}{chance}."]
    if not compared.shown:
        return [f"{begin}.", f"No difference shown between {first.label} and {rival.label}."]
    ratio = f"{texts.digits(compared.ratio)} times as fast as {rival.label} (95 % interval {compared.ends})"
    return [f"{begin}, {ratio}."]


def _none_reached(own: Sequence[Configuration]) -> str:
    """Of configurations that did not reach the target, or have none, or do not tell when they did."""
    measured = [one for one in own if _bests(one)]
    if not measured:
        return f"No run has a {said(own[0].metric)}."
    better = min if score.smaller_is_better(own[0].metric) else max
    first = better(measured, key=lambda one: statistics.median(_bests(one)))
    value = texts.score(statistics.median(_bests(first)))
    if first.target is None or any(math.isnan(score.cost(run)) for one in own for run in one.results):
        return f"The best {said(first.metric)} is {value}, of {first.label} ({_seeds(_bests(first))})."
    some = any(score.reached(run) for one in own for run in one.results)
    most = " with most of its seeds" if some else ""
    return f"No method reached {goal(first)} within its budget{most}; the best, {first.label}, came to {value}."


def _bests(one: Configuration) -> list[float]:
    return statistics.known([score.best(run) for run in one.results])


def _seeds(values: Sequence[float]) -> str:
    n = len(statistics.known(values))
    return "one seed" if n == 1 else f"median of {n} seeds"
