"""Snapshots of a run's servers in its folder, as the caller sees them: whether they may be gone on from, and where they lie."""

from __future__ import annotations

from typing import Any

from firesteel.checkpoint import Folder, unpack
from firesteel.errors import UsageError
from firesteel.net.protocol import Vec


def name(shard: int) -> str:
    return f"center-{shard}.safetensors"


def check(folder: str, shards: int, settings: dict[str, Any]) -> dict[str, str]:
    """The fingerprint of each worker's rows, by rank, in the run whose snapshots the folder holds.

    Raises:
        UsageError: there are none, or they are of a run with other settings.
    """
    rows: dict[str, str] = {}
    for shard in range(shards):
        data = Folder(folder).get(name(shard))
        if data is None:
            raise UsageError(
                f"{folder} holds no snapshot of shard {shard} to resume from; was it the run_dir of a run that reached a "
                "publish point?"
            )
        plain = unpack(data)[1]
        for setting, value in settings.items():
            then = plain["settings"][setting]
            if then != value:
                raise UsageError(f"{folder} was trained with {setting}={then}, this call has {setting}={value}.")
        rows |= plain["rows"]
    return rows


def mark(folder: str, shards: int, params: Vec, statistics: Vec) -> dict[str, float]:
    """Where the run stood that goes on from the snapshots in a folder.

    Raises:
        UsageError: they are of another model.
    """
    found = [unpack(Folder(folder).get(name(number)) or b"") for number in range(shards)]
    first, plain = found[0]
    then = sum(tensors["params"].numel() for tensors, _ in found), first["params"].dtype, first["statistics"].numel()
    now = params.numel(), params.dtype, statistics.numel()
    if then != now:
        said, here = (f"{count} parameters ({dtype}) and {more} running statistics" for count, dtype, more in (then, now))
        raise UsageError(
            f"{folder} holds a model of {said}, this call's has {here}. Resume with the model that was trained, or start anew."
        )
    return {"seconds": plain["seconds"], **plain["totals"]}


def lay_out(folder: str, shards: int, source: str | None) -> None:
    """Leave in a run's folder the snapshots to go on from, those of `source`, and no others."""
    if source == folder:
        return
    found = {} if source is None else {name(shard): Folder(source).get(name(shard)) for shard in range(shards)}
    for old in Folder(folder).names():
        if old.startswith("center-"):
            Folder(folder).delete(old)
    for new, data in found.items():
        assert data is not None  # the caller looked before
        Folder(folder).put(new, data)
