"""The life of one worker process on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from firesteel.checkpoint import StoreBoard
from firesteel.data.source import stream
from firesteel.failures import Failed
from firesteel.net.meeting import open_store
from firesteel.process import run_worker
from firesteel.results import RESULT


def live(folder: str, rank: int) -> NoReturn:
    """Run worker `rank` of the run whose files are in `folder`, and end the process."""
    code = 1
    try:
        _ = signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Written by the parent a moment ago, into a folder that only this user can enter.
        job, meetings, source, gpus = pickle.loads(Path(folder, "job.pkl").read_bytes())
        meeting = meetings[rank]
        store = open_store(meeting.host, meeting.port, meeting.start_seconds)
        rows = run_worker(
            job,
            meeting,
            stream(source, rank, meeting.size),
            StoreBoard(store, meeting.secret, job.key),
            store,
            f"cuda:{rank}" if rank < gpus else None,
        )
        with pa.OSFile(os.path.join(folder, f"result-{rank}.part"), "wb") as sink, pa.ipc.new_stream(sink, RESULT) as out:
            for batch in rows:
                out.write_batch(batch)
        os.rename(os.path.join(folder, f"result-{rank}.part"), os.path.join(folder, f"result-{rank}"))
        code = 0
    except Failed:
        pass  # the description is on the board, where the parent reads it
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
