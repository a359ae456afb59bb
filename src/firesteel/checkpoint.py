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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import pyarrow.fs as pafs
import safetensors.torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.sealing import seal, unseal

_PART_BYTES = 4 * 2**20


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
        system, path = self._at(name)
        system.create_dir(os.path.dirname(path), recursive=True)
        aside = f"{path}.{secrets.token_hex(4)}.part"
        with system.open_output_stream(aside) as out:
            _ = out.write(data)
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


def pack(tensors: dict[str, Tensor], plain: dict[str, Any]) -> bytes:
    """Tensors and JSON values as one safetensors file."""
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return safetensors.torch.save(whole, metadata={"firesteel": json.dumps(plain)})


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
        self.folder.put(f"{self._name(step)}/worker-{rank}.safetensors", pack(tensors, plain))

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
