"""The published experiments: runs the recipes, or goes on with them, and writes claims and verdicts into docs/results.md.

Results are kept in results/RECIPE; with --stored nothing is run, and the page is written from what is there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import report
from firesteel.bench import recipe, results, tables
from firesteel.bench.child import file_of
from firesteel.bench.configurations import configurations
from firesteel.cli.bench import conclude

ROOT = Path(__file__).parents[1]
RECIPES = ("vector_free", "parallelism", "averaging", "admm", "asynchronous")


def section(found: recipe.Recipe, folder: Path) -> str:
    """Claims and verdicts, and who was first on each workload, from the stored results."""
    own = results.read(folder)
    assert found.claims is not None
    verdict = lambda claim: f"**{claim.verdict}**" + (f": {claim.why}" if claim.why else "")  # noqa: E731
    rows = [[claim.text, claim.published, claim.measured, verdict(claim)] for claim in found.claims(own)]
    everything = configurations(own)
    heads = []
    for name in results.workloads(own):
        heads += [f"- {name}: {said}" for said in tables.headline([c for c in everything if c.workload == name])]
    failed = [r for r in own if r.status == "failed"]
    ran = [r for r in own if not r.external]
    machine = ran[0].header["environment"]
    commits = ", ".join(dict.fromkeys(str(r.header["environment"]["git"]) for r in ran))
    return "\n\n".join(
        [
            f"## {found.title}",
            found.about,
            f"{len(ran)} trials, {len(failed)} failed; `firesteel bench report {folder.relative_to(ROOT)}` draws them. "
            f"Commits {commits}; torch {machine['torch']}, {machine['cores']} cores of {machine['cpu']}.",
            report.table(["claim", "published", "measured here", "verdict"], rows),
            "\n".join(heads),
        ]
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--stored", action="store_true", help="run nothing")
    flags.add_argument("--only", choices=RECIPES, action="append", help="this one (may be given several times)")
    given = flags.parse_args()
    os.chdir(ROOT)
    for name in given.only or RECIPES:
        path, folder = f"recipes/{name}.py", ROOT / "results" / name
        if not given.stored:
            command = [sys.executable, "-m", "firesteel.cli", "bench", "run", path, "--out", str(folder)]
            done = subprocess.run(command, cwd=ROOT)
            if done.returncode > 1:  # called wrongly, or stopped: what is there is not the whole experiment
                sys.exit(done.returncode)
        found = recipe.load(path)
        left = [each for each in found.trials if not file_of(folder, each).exists()]
        if left:
            sys.exit(f"{folder} lacks {len(left)} of {len(found.trials)} trials: run without --stored.")
        _ = conclude(found, folder)
        report.write(f"recipe-{name}", section(found, folder))


if __name__ == "__main__":
    main()
