"""Files of a run: safetensors and JSON in a folder that is a path or a URI, written aside and renamed.

The run folder also is the notice board between a run and whoever watches it: `progress.json`, `model.safetensors`,
a file `stop`. It works wherever all can see it, with no socket between them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import pyarrow.fs as pafs
import safetensors.torch
import torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.sealing import seal, unseal

_PART_BYTES = 4 * 2**20

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # as safetensors names them


class Board(Protocol):
    """Where short notices are left and read: a run folder, or the store in which a gang meets."""

    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes | None: ...


@final
@dataclass(frozen=True)
class StoreBoard:
    """Notices in a `torch.distributed` store, under a prefix of this run's own.

    The prefix is no secret: the store lists its keys to whoever reaches its port, and takes what he writes. So notices are
    sealed, and what somebody else has left there is not seen.

    The store takes 8 MiB at once: what is longer lies in parts, in two places in turn, so that a reader finds the old one
    whole while the new one is written.
    """

    store: Any
    prefix: str
    key: str

    def put(self, name: str, data: bytes) -> None:
        place = f"{self.prefix}/board/{name}"
        data = self._put_parts(place, data) if len(data) > _PART_BYTES else b"=" + data
        self.store.set(place, seal(self.key, place, data))

    def get(self, name: str) -> bytes | None:
        place = f"{self.prefix}/board/{name}"
        found = self._unsealed(place)
        if found is None or found[:1] == b"=":
            return found and found[1:]
        side, count, digest = found[1:].decode().split()
        keys = [f"{place}/{side}/{number}" for number in range(int(count))]
        data = b"".join(self.store.get(key) for key in keys) if self.store.check(keys) else b""
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def _put_parts(self, place: str, data: bytes) -> bytes:
        """Write the data beside where it lay before; returns what says where that is."""
        before = self._unsealed(place)
        side = "b" if before is not None and before[:2] == b"+a" else "a"
        cuts = range(0, len(data), _PART_BYTES)
        for number, start in enumerate(cuts):
            self.store.set(f"{place}/{side}/{number}", data[start : start + _PART_BYTES])
        return f"+{side} {len(cuts)} {hashlib.sha256(data).hexdigest()}".encode()

    def _unsealed(self, place: str) -> bytes | None:
        return unseal(self.key, place, self.store.get(place)) if self.store.check([place]) else None


@final
@dataclass(frozen=True)
class Folder:
    """A folder by path or URI (`s3://`, `hdfs://`, `gs://`, `file://`), as `pyarrow.fs` knows them."""

    uri: str

    def _at(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            path = os.path.abspath(os.path.expanduser(self.uri))
            return pafs.LocalFileSystem(), os.path.join(path, name) if name else path
        try:
            system, path = pafs.FileSystem.from_uri(self.uri)
        except Exception as error:
            raise UsageError(f"{self.uri!r} is no folder that can be opened: {error}") from error
        return system, f"{path.rstrip('/')}/{name}" if name else path

    def absolute(self) -> str:
        """The folder by a name that means the same to processes that were started elsewhere."""
        return self.uri if "://" in self.uri else os.path.abspath(os.path.expanduser(self.uri))

    def path(self, name: str) -> Path | None:
        """Where a file of this folder lies on this machine; None if it is not the machine's own folder."""
        system, path = self._at(name)
        return Path(path) if isinstance(system, pafs.LocalFileSystem) else None

    def put(self, name: str, data: bytes) -> None:
        """Write a whole file: readers see the old one or the new one, never a part."""
        self.write(name, [data])

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a whole file chunk by chunk, so that it need not be in memory."""
        system, path = self._at(name)
        system.create_dir(os.path.dirname(path), recursive=True)
        aside = f"{path}.{secrets.token_hex(4)}.part"
        with system.open_output_stream(aside) as out:
            for chunk in chunks:
                _ = out.write(chunk)
        system.move(aside, path)

    def get(self, name: str) -> bytes | None:
        system, path = self._at(name)
        try:
            with system.open_input_stream(path) as source:
                return source.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, under: str = "") -> list[str]:
        """The names of files and folders directly in `under`, sorted."""
        system, path = self._at(under)
        selector = pafs.FileSelector(path, allow_not_found=True)
        return sorted(info.base_name for info in system.get_file_info(selector))

    def must_be_seen(self, secret: str) -> None:
        """Raise UsageError on a worker that does not see the folder in which the caller has left the run's secret."""
        note = self.get("run.json")
        if note is None or json.loads(note)["secret"] != secret:
            raise UsageError(
                f"the run folder {self.uri} is not the caller's when seen from {socket.gethostname()}: with workers on several "
                "hosts it must be a place that all see, such as s3://, hdfs:// or a shared file system."
            )

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing happens if it is not there."""
        system, path = self._at(name)
        kind = system.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            system.delete_dir(path)
        elif kind == pafs.FileType.File:
            system.delete_file(path)


def header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """How a safetensors file of such tensors begins, and where in it each of them starts, in bytes.

    Wide types come first: so all are aligned.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, x in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        entries[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text).to_bytes(8, "little") + text
    return begin, {name: len(begin) + entry["data_offsets"][0] for name, entry in entries.items()}


def packed(tensors: dict[str, Tensor], plain: dict[str, Any]) -> Iterator[bytes | memoryview]:
    """Tensors and JSON values as one safetensors file, chunk by chunk; tensors on the CPU are not copied."""
    begin, offsets = header(tensors, {"firesteel": json.dumps(plain)})
    yield begin
    for name in offsets:
        yield raw(tensors[name])


def pack(tensors: dict[str, Tensor], plain: dict[str, Any]) -> bytes:
    """Tensors and JSON values as one safetensors file."""
    return b"".join(packed(tensors, plain))


def raw(x: Tensor) -> memoryview:
    """A tensor's bytes; not a copy if it is on the CPU and has no gaps."""
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `pack` packed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return safetensors.torch.load(data), json.loads(header["__metadata__"]["firesteel"])


@final
@dataclass(frozen=True)
class Points:
    """The points of a run folder from which it can resume: one file a worker, and `point.json` once all are there."""

    folder: Folder

    @staticmethod
    def _name(step: int) -> str:
        return f"points/step-{step:010d}"

    def write(self, step: int, rank: int, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        self.folder.write(f"{self._name(step)}/worker-{rank}.safetensors", packed(tensors, plain))

    def commit(self, step: int, settings: dict[str, Any], keep: int = 2) -> None:
        """All workers have written: make the point valid, and drop all but the `keep` newest."""
        self.folder.put(f"{self._name(step)}/point.json", json.dumps({"step": step, **settings}).encode())
        for name in self.folder.names("points")[:-keep]:
            self.folder.delete(f"points/{name}")

    def forget(self) -> None:
        """Drop all points: those of a run that was here before are none of the next one's."""
        for name in self.folder.names("points"):
            self.folder.delete(f"points/{name}")

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and settings of the newest valid point."""
        for name in reversed(self.folder.names("points")):
            found = self.folder.get(f"points/{name}/point.json")
            if found is not None:
                settings = json.loads(found)
                return settings["step"], settings
        return None

    def read(self, step: int, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        data = self.folder.get(f"{self._name(step)}/worker-{rank}.safetensors")
        if data is None:
            raise UsageError(f"{self.folder.uri} has no state of worker {rank} at step {step}; did fewer workers write it?")
        return unpack(data)
