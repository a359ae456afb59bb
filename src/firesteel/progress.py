"""How far a run is: a bar on a terminal or in a notebook, plain lines in a log, nothing when it is told so."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal, Protocol, final

Show = Literal["auto", "bar", "lines", "none"]


class Reporter(Protocol):
    """Something that is told a run's state a few times a second."""

    def update(self, state: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return bool(shell and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell")


def reporter(show: Show | bool) -> Reporter:
    """The reporter that fits where the output goes."""
    if show is False or show == "none":
        return Silent()
    if show in (True, "auto"):
        show = "bar" if sys.stderr.isatty() or in_notebook() else "lines"
    return Bar() if show == "bar" else Lines()


def seconds_left(state: dict[str, Any]) -> float:
    """Until the first of the run's limits, going on as until now."""
    done, seconds = max(state["step"], 1), state["seconds"]
    left = [limit - seconds for limit in [state["max_seconds"]] if limit is not None]
    if state["total_steps"]:
        left.append((state["total_steps"] - done) * seconds / done)
    return max(0.0, min(left, default=0.0))


def line(state: dict[str, Any]) -> str:
    """One state in words."""
    if state.get("stage") == "evaluating":
        return f"evaluating what was published, after {state['seconds']:.1f} s of training"
    done, seconds = state["step"], state["seconds"]
    rate = state["samples"] / seconds if seconds > 0 else 0.0
    total = f"/{state['total_steps']}" if state["total_steps"] else ""
    text = f"step {done}{total}  epoch {state['epoch']:.2f}  loss {state['loss']:.4f}  {rate:,.0f} samples/s"
    text += f"  {seconds_left(state):.0f} s left"
    scores = state.get("scores", {})
    return text + "".join(f"  {name.replace('_', ' ', 1)} {value:.4f}" for name, value in scores.items())


@final
class Silent:
    def update(self, state: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@final
class Lines:
    """At most a line every two seconds, so that a log stays a log."""

    def __init__(self) -> None:
        self._said_at: float = 0.0
        self._last: str = ""

    def update(self, state: dict[str, Any]) -> None:
        now, text = time.monotonic(), line(state)
        if text != self._last and (now - self._said_at >= 2.0 or state.get("stage") == "evaluating"):
            self._said_at, self._last = now, text
            print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None: ...


@final
class Bar:
    """A live bar by `rich`, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console: Console = Console(stderr=True)
        self._bar: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            console=self._console,
            transient=False,
        )
        self._task: Any = None

    def update(self, state: dict[str, Any]) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        share = state["step"] / state["total_steps"] if state["total_steps"] else 0.0
        if state["max_seconds"]:
            share = max(share, min(1.0, state["seconds"] / state["max_seconds"]))
        self._bar.update(self._task, completed=share, description=line(state))

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def close(self) -> None:
        if self._task is not None:
            self._bar.stop()
