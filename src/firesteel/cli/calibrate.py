"""`firesteel calibrate`."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal, final

import tyro

from firesteel.cli.train import Train, model_of
from firesteel.sim.calibrate import calibrate


@final
@dataclass(frozen=True)
class Calibrate:
    """Measure this machine or a Spark cluster, and write what was found as a cluster for `plan` and `train --on FILE`.

    Measured are the seconds of a row and of a step of this model, latency and bandwidth between workers, and how fast a server
    merges. It takes well under a minute.

    Examples:
      firesteel calibrate mlp:64,128,10 digits --out cluster.json
      firesteel calibrate lenet mnist:./mnist --on spark --master spark://host:7077 --workers 4 --out cluster.json
    """

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """mlp:IN,HIDDEN,...,OUT, lenet, vgg:DEPTH,WIDTH, rnn: or lstm:IN,HIDDEN,CLASSES, or MODULE:FACTORY."""
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """Rows for this model: a Parquet file or folder, or digits, mnist, mnist:FOLDER."""
    out: str = "cluster.json"
    """Where to write the cluster."""
    features: list[str] = dataclasses.field(default_factory=lambda: ["features"])
    """Feature columns."""
    label: str = "label"
    """Label column."""
    loss: str = "cross_entropy"
    """cross_entropy, bce_with_logits, mse, mae or huber."""
    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    """The local optimizer; its step is part of what is measured."""
    batch_size: int = 64
    """Rows of a step, per worker."""
    on: Literal["local", "spark"] = "local"
    """This machine, or Spark."""
    workers: int = 2
    """Number of workers, 2 or more."""
    master: str | None = None
    """Spark's master, such as "local-cluster[2,1,2048]" or spark://host:7077."""
    remote: str | None = None
    """A Spark Connect server, such as sc://host:15002."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        as_in_train = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("out", "debug")}
        training = Train(**as_in_train)
        on = training.world()
        rows, columns = training.rows_for(on)
        began = time.monotonic()
        settings = {"features": columns, "label": self.label, "loss": self.loss, "optimizer": training.chosen_optimizer()}
        found = calibrate(model_of(self.model), rows, on=on, batch_size=self.batch_size, **settings)
        found = dataclasses.replace(found, about=f"{self.model}, {found.about.partition(', ')[2]}")
        found.save(self.out)
        network, merging = found.network, found.merging
        near = network.workers_per_host == found.workers
        latency = network.local_latency_seconds if near else network.latency_seconds
        bandwidth = network.local_bandwidth if near else network.bandwidth
        where = "within this host; between hosts 1 Gbit/s is assumed" if near else "between hosts"
        each = ", ".join(f"{1e6 * s:.2f}" for s in dict.fromkeys(found.row_seconds(0)))
        print(f"computing   {each} us a row, {1e6 * found.compute.step_seconds:.0f} us a step")
        print(f"network     {1e6 * latency:.0f} us, {bandwidth / 1e6:,.0f} MB/s {where}")
        print(f"server      {1e6 * merging.message_seconds:.0f} us a message, {merging.bandwidth / 1e9:.1f} GB/s merging")
        print(f"cluster: {self.out} (measured in {time.monotonic() - began:.0f} s)", file=sys.stderr)
        return 0
