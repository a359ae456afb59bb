"""`firesteel predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from firesteel import persistence
from firesteel.data.columns import ROW, Columns, Image, Sequence, Tokens
from firesteel.data.shard import build_shard
from firesteel.data.source import resolve
from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class Predict:
    """Predict with a saved model.

    Examples:
      firesteel predict model data.parquet --out predictions.parquet
      firesteel predict model data.parquet --json

    Writes the rows with a column `prediction` (the class or the value) and, for classes, `probability` beside them; without
    --out it prints the first ones. If the label column is there, it says how good the predictions are.
    """

    model: tyro.conf.Positional[str]
    """Folder of a saved model."""
    data: tyro.conf.Positional[str]
    """A Parquet file or folder."""
    out: str | None = None
    """Parquet file to write."""
    json: bool = False
    """Print one JSON object, last, on standard output."""
    allow_pickle: bool = False
    """Load a model that was saved as a pickle, which runs its code."""
    debug: bool = False
    """Show tracebacks of errors."""

    def run(self) -> int:
        columns = columns_of(persistence.describe(self.model))
        module = persistence.load(self.model, allow_pickle=self.allow_pickle)
        source, _ = resolve(self.data, columns.features, None, None, None, columns.target)
        rows, right, labelled, writer = 0, 0, 0, None
        for table in _predictions(module, columns, source):
            if writer is None and self.out:
                writer = pq.ParquetWriter(self.out, table.schema)
            if writer is not None:
                writer.write_table(table)
            elif rows == 0:
                print(_head(table), file=sys.stderr)
            rows += len(table)
            if columns.target == "class" and columns.label in table.schema.names:
                labelled += len(table)
                same = _entries(table["prediction"]) == _entries(table[columns.label])
                right += float(same.reshape(len(table), -1).mean(1).sum())
        if writer is not None:
            writer.close()
        accuracy = right / labelled if labelled else None
        where = f" -> {self.out}" if self.out else ""
        said = f", accuracy {accuracy:.4f}" if accuracy is not None else ""
        print(f"{rows} rows{where}{said}", file=sys.stderr)
        if self.json:
            print(json.dumps({"rows": rows, "out": self.out, "accuracy": accuracy}), flush=True)
        return 0


def columns_of(description: dict[str, Any]) -> Columns:
    """The columns that a saved model was trained on."""
    plain = description.get("columns")
    if not plain:
        raise UsageError("the saved model does not say which columns it was trained on.")
    features = plain["features"]
    if isinstance(features, dict):
        kinds = {"Image": Image, "Tokens": Tokens, "Sequence": Sequence}
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in features.items() if k != "kind"}
        features = kinds[features["kind"]](**settings)
    return Columns(features, plain["label"], None, None, plain["target"], plain["dtype"])


def _predictions(module: torch.nn.Module, columns: Columns, source: Any) -> Iterator[pa.Table]:
    import pyarrow.dataset as pads

    without = Columns(columns.features, None, None, None, columns.target, columns.dtype)
    row = 0
    for batch in pads.dataset(source.path, format="parquet").to_batches(batch_size=8192):
        if not batch.num_rows:
            continue
        numbered = batch.select(without.needed()).append_column(ROW, pa.array(np.arange(row, row + batch.num_rows)))
        row += batch.num_rows
        shard = build_shard([numbered], without, 2**40)
        with torch.no_grad():
            outputs = module(*shard.block(0, shard.rows).inputs)
        table = pa.Table.from_batches([batch])
        if columns.target == "class":
            table = table.append_column("prediction", _nested(outputs.argmax(1)))
            table = table.append_column("probability", _nested(torch.softmax(outputs, 1).movedim(1, -1)))
        else:
            values = outputs.numpy()
            single = values.reshape(len(values), -1)
            column = pa.array(single[:, 0]) if single.shape[1] == 1 else pa.array(list(single))
            table = table.append_column("prediction", column)
        yield table


def _nested(x: torch.Tensor) -> pa.Array:
    """[n, ...] as a column: numbers, lists, or lists of lists where each step of a row has its own."""
    column = pa.array(x.contiguous().numpy().reshape(-1))
    for width in reversed(x.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    return column


def _entries(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """All numbers of a column of numbers, or of lists of them, one after the other."""
    whole = column.combine_chunks()
    return (whole.flatten() if pa.types.is_nested(whole.type) else whole).to_numpy(zero_copy_only=False)


def _head(table: pa.Table, rows: int = 5) -> str:
    shown = table.slice(0, rows).select([n for n in table.schema.names if n == "prediction" or _short(table, n)])
    lines = ["  ".join(f"{n:>12}" for n in shown.schema.names)]
    for record in shown.to_pylist():
        lines.append("  ".join(f"{v:>12.6g}" if isinstance(v, float) else f"{v!s:>12}" for v in record.values()))
    return "\n".join(lines)


def _short(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)
