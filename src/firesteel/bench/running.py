"""Running a recipe: its trials are dealt to processes, results are kept as they come, what is there is not done again."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from firesteel.bench import results
from firesteel.bench.child import file_of, locked
from firesteel.bench.recipe import Recipe
from firesteel.bench.results import Result
from firesteel.errors import Interrupted, UsageError
from firesteel.stopping import plain_interrupts

PATIENCE_SECONDS = 20.0  # for a child to stop its training at Ctrl-C


@final
@dataclass(frozen=True)
class News:
    """What a bench tells while it runs."""

    name: str
    kind: str
    """"begun", "done", "there" (another bench has done it) or "waiting" (another bench is doing it)."""
    result: Result | None = None


def pending(recipe: Recipe, folder: Path) -> list[str]:
    """The trials that have no result yet, in order."""
    return [name for name in recipe.trials if not file_of(folder, name).exists()]


def forget_failed(recipe: Recipe, folder: Path) -> None:
    """Remove the results of trials that failed; not of those that diverged, which is what they do."""
    for name in recipe.trials:
        path = file_of(folder, name)
        with locked(path, wait=False) as mine:  # another bench may be doing it again already
            if mine and path.exists() and results.read_file(path).status == "failed":
                path.unlink()


def run(recipe: Recipe, names: list[str], folder: Path, jobs: int, master: str | None, tell: Callable[[News], None]) -> None:
    """Perform these trials, `jobs` at a time.

    Raises:
        UsageError: the recipe gives other trials when another process reads it.
        Interrupted: Ctrl-C. What was done is kept; the same call goes on.
    """
    (folder / results.TRIALS).mkdir(parents=True, exist_ok=True)
    call = {"recipe": recipe.path, "choices": recipe.choices, "folder": str(folder), "master": master}
    todo: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    for name in names:
        todo.put((name, False))
    news: queue.SimpleQueue[News | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    hands = [_Hand(recipe, call, folder, todo, news, stop) for _ in range(min(jobs, len(names)))]
    for hand in hands:
        hand.thread.start()
    try:
        with plain_interrupts():
            working = len(hands)
            while working:
                item = news.get()
                if item is None:
                    working -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    tell(item)
    except KeyboardInterrupt:
        _end(hands, stop)
        done, all_ = len(recipe.trials) - len(pending(recipe, folder)), len(recipe.trials)
        raise Interrupted(f"{done} of {all_} trials are done and kept in {folder}; the same command goes on.") from None
    finally:
        _end(hands, stop)


def _end(hands: list[_Hand], stop: threading.Event) -> None:
    """Tell all processes at once to stop what they train; those that do not within some seconds are killed."""
    stop.set()
    for hand in hands:
        hand.interrupt()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for hand in hands:
        hand.thread.join(max(0.0, deadline - time.monotonic()))
        hand.kill()


@final
class _Hand:
    """A thread of the bench with a process of its own, which performs what comes next in the queue."""

    def __init__(self, recipe: Recipe, call: dict[str, Any], folder: Path, todo: Any, news: Any, stop: threading.Event) -> None:
        self._recipe: Recipe = recipe
        self._call: dict[str, Any] = call
        self._folder: Path = folder
        self._todo: queue.SimpleQueue[tuple[str, bool]] = todo
        self._news: queue.SimpleQueue[News | BaseException | None] = news
        self._stop: threading.Event = stop
        self._child: _Child | None = None
        self.thread: threading.Thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    name, wait = self._todo.get_nowait()
                except queue.Empty:
                    break
                self._news.put(News(name, "waiting" if wait else "begun"))
                self._perform(name, wait)
        except BaseException as error:
            self._news.put(error)
        finally:
            child, self._child = self._child, None
            if child is not None:
                _ = child.end(0.0 if self._stop.is_set() else PATIENCE_SECONDS)
            self._news.put(None)

    def _perform(self, name: str, wait: bool) -> None:
        if self._child is None:
            self._child = _Child(self._call, self._folder)
            answer = self._child.answer()
            if self._stop.is_set():
                return
            if answer != {"ready": self._recipe.digest}:
                raise UsageError(
                    f"{self._recipe.path} gives other trials when another process reads it, or cannot be read there: settings "
                    f"must not depend on chance, time or place. {self._folder / LOG} has what it said."
                )
        answer = self._child.ask(name, wait)
        if answer is None:
            status = self._child.end(5.0)
            self._child = None
            if self._stop.is_set():
                return
            self._record_death(name, status)
        elif "interrupted" in answer:
            raise KeyboardInterrupt
        elif "busy" in answer:
            self._todo.put((name, True))
            return
        elif "there" in answer:
            self._news.put(News(name, "there"))
            return
        self._news.put(News(name, "done", results.read_file(file_of(self._folder, name))))

    def _record_death(self, name: str, status: int) -> None:
        """The trial has taken its process with it, which is its result."""
        path = file_of(self._folder, name)
        with locked(path, wait=True):
            if path.exists():
                return
            how = f"by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"with exit code {status}"
            told = f"its process ended {how}; what it said last is in {self._folder / LOG}."
            if status == -signal.SIGKILL:
                told += " Signal 9 often means that memory ran out."
            header = self._recipe.trials[name].header()
            results.write(path, Result(name, header, (), "failed", {"type": "ProcessDied", "message": told}))

    def interrupt(self) -> None:
        if (child := self._child) is not None:
            child.interrupt()

    def kill(self) -> None:
        if (child := self._child) is not None:
            _ = child.end(0.0)


LOG = "log.txt"


@final
class _Child:
    """A process that performs trials: `child.main`. Whatever it and its libraries print goes to the bench's log."""

    def __init__(self, call: dict[str, Any], folder: Path) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        alive, self._alive = os.pipe()  # closes when this process ends, however it does
        command = [sys.executable, "-m", "firesteel.bench.child", str(orders), str(answers), str(alive), json.dumps(call)]
        with (folder / LOG).open("a") as log:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                pass_fds=(orders, answers, alive),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for theirs in (orders, answers, alive):
            os.close(theirs)
        self._out: Any = os.fdopen(self._orders, "w")
        self._in: Any = os.fdopen(self._answers)

    def ask(self, name: str, wait: bool) -> dict[str, Any] | None:
        """Its answer; None if it has died."""
        try:
            _ = self._out.write(json.dumps([name, wait]) + "\n")
            self._out.flush()
        except OSError:
            return None
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        line = self._in.readline()
        return json.loads(line) if line.endswith("\n") else None

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)  # nothing, if it has ended

    def end(self, seconds: float) -> int:
        """Let it end by itself for so long, then end it with all its processes; its exit status."""
        with contextlib.suppress(OSError):
            self._out.close()
        deadline = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            _ = self._process.wait(max(0.05, deadline - time.monotonic()))
        status = self._process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.close(self._alive)
        self._alive = -1
        with contextlib.suppress(OSError):
            self._in.close()
        return self._process.wait() if status is None else status
