"""Orders of arrival written by hand, as a server would have logged them: what `Replay` plays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import pyarrow as pa

import firesteel
from firesteel.net.center import LOG

SETTINGS = ("shards", "max_ahead", "max_growth", "record_every")


def verbs(steps: int, window: int, elastic: bool = False) -> list[str]:
    """What one worker asks of the server in a run of so many local steps."""
    times = -(-steps // window)
    return ["pull", *["pull", "push"] * times, "pull"] if elastic else ["pull", *["push", "pull"] * times]


def log(programs: list[list[str]], turns: Iterable[int], **server) -> pa.Table:
    """Each number in `turns` is a worker whose next verb arrives."""
    events: list[tuple[str, int]] = [("join", k) for k in range(len(programs))]
    left = [list(p) for p in programs]
    for k in turns:
        events.append((left[k].pop(0), k))
    assert not any(left), "turns must use up all verbs"
    events += [("leave", k) for k in range(len(programs))]
    columns = {f.name: [0] * len(events) for f in LOG}
    columns |= {"kind": [e[0] for e in events], "worker": [e[1] for e in events]}
    table = pa.table({n: pa.array(v, LOG.field(n).type) for n, v in columns.items()})
    table = table.add_column(0, "shard", pa.array([0] * len(events)))
    kept = {name: getattr(firesteel.Server(**server), name) for name in SETTINGS}
    meaning = {"workers": len(programs), "server": kept, "digest": "", "settings": {}}
    return table.replace_schema_metadata({"firesteel": json.dumps(meaning)})


def round_robin(programs: list[list[str]]) -> list[int]:
    """All begin with a pull; from then on each worker's push and pull come together, one worker after the other."""
    n, pairs = len(programs), (len(programs[0]) - 1) // 2
    assert all(p == programs[0] for p in programs)
    rest = len(programs[0]) - 1 - 2 * pairs
    return [
        *range(n),
        *[k for _ in range(pairs) for k in range(n) for _ in (0, 1)],
        *[k for k in range(n) for _ in range(rest)],
    ]


def brief(strategy: object) -> str:
    return f"{type(strategy).__name__}-{'-'.join(f'{v}' for v in dataclasses.asdict(strategy).values())}"  # pyright: ignore
