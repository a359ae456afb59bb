"""Sequences: spoken vowels, and a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firesteel.datasets.dataset import Array, Arrays, Dataset, folder_of, found, read
from firesteel.errors import UsageError

_COEFFICIENTS = 12


def japanese_vowels(folder: str | Path | None = None) -> Dataset:
    """Japanese Vowels (Kudo et al. 1999): who of 9 speakers says /ae/; 270 and 370 sequences of 7 to 29 steps.

    X is a list of float32 arrays [T, 12], the linear prediction coefficients of each step; y the speaker, 0 .. 8. From the
    files JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts of the UEA archive (packed or not).

    Without a folder: `$FIRESTEEL_DATA/japanese_vowels`, else `~/.cache/firesteel/japanese_vowels`. Nothing is downloaded.

    Raises:
        UsageError: a file is missing, or a line is not what it should be.
    """
    place = folder_of("japanese_vowels", folder)
    paths = [found(place, f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
    if None in paths:
        raise UsageError(
            f"Japanese Vowels needs {place / 'JapaneseVowels_TRAIN.ts'} and JapaneseVowels_TEST.ts, packed by gzip or not; put "
            "them there: https://www.timeseriesclassification.com/description.php?Dataset=JapaneseVowels has them."
        )
    train, test = (_vowels(path) for path in paths if path is not None)
    return Dataset("japanese_vowels", train, test, 9)


def _vowels(path: Path) -> Arrays:
    """After the line @data, a row a line: each coefficient's numbers with commas between them, then the class, 1 .. 9."""
    lines = read(path).decode("utf-8", "replace").splitlines()
    start = next((i + 1 for i, line in enumerate(lines) if line.strip().lower() == "@data"), len(lines))
    x: list[Array] = []
    y: list[int] = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        *fields, label = line.strip().split(":")
        try:
            steps = np.array([field.split(",") for field in fields], np.float32).T  # [T, 12]
            speaker = int(label) - 1
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is no row of numbers and a class: {error}.") from error
        if steps.ndim != 2 or steps.shape[1] != _COEFFICIENTS or not 0 <= speaker < 9:
            raise UsageError(
                f"{path}, line {number} has {len(fields)} rows of numbers and the class {label}; there must be "
                f"{_COEFFICIENTS} of one length, and a class 1 .. 9."
            )
        x.append(np.ascontiguousarray(steps))
        y.append(speaker)
    if not x:
        raise UsageError(f"{path} has no rows after a line @data.")
    return x, np.array(y, np.int64)


def tinyshakespeare(folder: str | Path | None = None, *, steps: int = 64) -> Dataset:
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters, 65 symbols, in windows of `steps` >= 1 one after the other.

    X, int64 [n, steps], holds symbols 0 .. 64, numbered in the order of their bytes; y, [n, steps], the symbol that follows
    each. The first 90 % of the text are to train, the rest to test; of both, what fills no window is left out. From the file
    input.txt (packed or not).

    Without a folder: `$FIRESTEEL_DATA/tinyshakespeare`, else `~/.cache/firesteel/tinyshakespeare`. Nothing is downloaded.

    Raises:
        UsageError: the file is missing, or too short for a window in each part.
    """
    if steps < 1:
        raise UsageError(f"tinyshakespeare(steps={steps}): a window has at least 1.")
    place = folder_of("tinyshakespeare", folder)
    path = found(place, "input.txt")
    if path is None:
        raise UsageError(
            f"Tiny Shakespeare needs {place / 'input.txt'}; put it there: "
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
        )
    symbols, text = np.unique(np.frombuffer(read(path), np.uint8), return_inverse=True)
    cut = len(text) * 9 // 10
    if len(text) - cut < steps + 1:
        raise UsageError(f"{path} has {len(text)} characters: too few for windows of {steps} in its last tenth.")
    return Dataset("tinyshakespeare", _windows(text[:cut], steps), _windows(text[cut:], steps), len(symbols))


def _windows(text: Array, steps: int) -> Arrays:
    """Windows of symbols, [n, steps], and of those that follow them."""
    n = (len(text) - 1) // steps
    x, y = (text[first : first + n * steps].reshape(n, steps).astype(np.int64) for first in (0, 1))
    return x, y
