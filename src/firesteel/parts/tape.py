"""A tape of the tensor operations of a network's construction: run without memory, played back later for what is wanted.

While a `Tape` records, factories give tensors on the device "meta", which have shapes but no numbers; the code that is
recorded sees them as tensors on the CPU. The idea is that of torchdistx's deferred initialisation (Meta, 2022).

Random operations are run at once, on scratch memory: so the generators move as they would, whatever the recorded code
does with them, and the state before each draw is known. Everything else is run only when it is played back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Generator, Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from firesteel.parts.pretence import Blame, Pretence, Unrecordable

_META, _CPU = torch.device("meta"), torch.device("cpu")
_aten = torch.ops.aten
# In-place operations that do not read the tensor they write.
_OVERWRITE = {
    _aten.bernoulli_.float,
    _aten.cauchy_.default,
    _aten.copy_.default,
    _aten.exponential_.default,
    _aten.fill_.Scalar,
    _aten.fill_.Tensor,
    _aten.geometric_.default,
    _aten.log_normal_.default,
    _aten.normal_.default,
    _aten.random_.default,
    _aten.random_.to,
    getattr(_aten.random_, "from"),
    _aten.uniform_.default,
    _aten.zero_.default,
}


@final
@dataclass(frozen=True)
class View:
    """Where a tensor lies in a storage."""

    key: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: UntypedStorage) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)  # pyright: ignore[reportArgumentType]

    @property
    def dense_bytes(self) -> int:
        """Bytes of its elements if they lie side by side, each once; else 0."""
        size = 1
        for stride, length in sorted((s, n) for s, n in zip(self.stride, self.shape, strict=True) if n != 1):
            if stride != size:
                return 0
            size *= length
        return size * self.dtype.itemsize


@final
@dataclass(frozen=True)
class _Operation:
    function: Callable[..., Any]
    leaves: list[Any]
    """Its arguments, flat, with views for tensors."""
    spec: TreeSpec
    outputs: list[View | None]
    """Of its results, flat; None for what is not a tensor."""
    reads: frozenset[int]
    writes: frozenset[int]
    clears: frozenset[int]
    """Those of the storages written of which nothing older is left."""
    dtype: torch.dtype
    """The default one."""
    generator: Generator | None = None
    state: Tensor | None = None
    """Of the generator, before the draw."""


def _empty(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META)


def aliased(function: Any, args: Any, kwargs: Any, to_write: bool = False) -> list[Tensor]:
    """Those tensors among the arguments whose memory the function writes, or also those of which it gives views."""
    found: list[Tensor] = []
    for number, argument in enumerate(function._schema.arguments):
        # The schemas of batch normalisation do not say that it writes its statistics.
        write = argument.name in ("running_mean", "running_var") or (argument.alias_info and argument.alias_info.is_write)
        if write or (argument.alias_info is not None and not to_write):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return found


@final
class Tape(TorchDispatchMode):
    """Records as a context; then `play` gives the numbers of storages, and `view` says where a tensor has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blame: Blame = Blame()
        self.constants: dict[int, UntypedStorage] = {}
        """Numbers that come from outside."""
        self._operations: list[_Operation] = []
        self._writers: defaultdict[int, list[int]] = defaultdict(list)
        self._storages: dict[int, UntypedStorage] = {}  # without numbers; alive, so that no other gets the same key
        self._twins: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}  # of a storage outside: itself, and without numbers
        self._pretence: Pretence = Pretence(self.value, self.blame)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: else the first operation imports torch's compiler, which takes seconds."""
        return False

    def __enter__(self) -> Self:
        super().__enter__()
        self._pretence.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pretence.__exit__(*error)
        super().__exit__(*error)
        self._twins.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self.blame, torch._C.DisableTorchFunction():
            leaves, spec = tree_flatten((args, kwargs or {}))
            shared = {id(x) for x in aliased(func, args, kwargs or {})}
            return self._record(func, [self._without_numbers(x, id(x) in shared) for x in leaves], spec)

    def view(self, x: Tensor) -> View:
        """Where it lies; `Unrecordable` for a tensor that no recorded operation made."""
        if x.layout is not torch.strided or x.is_conj() or x.is_neg():
            raise Unrecordable("there is a tensor that is not plain and strided")
        key = x.untyped_storage()._cdata
        if key not in self._storages:
            raise Unrecordable("there is a tensor that no recorded operation made")
        return View(key, x.dtype, x.shape, x.stride(), int(x.storage_offset()))

    def keep(self, x: Tensor) -> View:
        """A constant with the numbers, in the memory, of this tensor."""
        storage = x.untyped_storage()
        self._storages[storage._cdata] = self.constants[storage._cdata] = storage
        return self.view(x)

    def value(self, x: Tensor) -> Tensor:
        """The numbers that a tensor has now."""
        view = self.view(x)
        return view.of(self.play({view.key})[view.key])

    def play(self, keys: Iterable[int]) -> dict[int, UntypedStorage]:
        """The numbers of the storages at the end of the tape. Leaves all generators as they are.

        The storages may be the constants themselves: they are to be read, not written.
        """
        keys = frozenset(keys)
        values = self._play(keys)
        return {key: self._storage(key, values) for key in keys}

    def _play(self, keys: frozenset[int]) -> dict[int, UntypedStorage]:
        """The same without the constants that no operation has written."""
        numbers = self._needed(keys)
        last: dict[int, int] = {key: number for number in numbers for key in self._touched(number)}
        generators = {g: g.get_state() for n in numbers if (g := self._operations[n].generator) is not None}
        values: dict[int, UntypedStorage] = {}
        try:
            for number in numbers:
                self._run(self._operations[number], values)
                for key in self._touched(number):
                    if last[key] == number and key not in keys:
                        values.pop(key, None)
        finally:
            for generator, state in generators.items():
                generator.set_state(state)
        return values

    def _touched(self, number: int) -> frozenset[int]:
        return self._operations[number].reads | self._operations[number].writes

    def _needed(self, keys: frozenset[int]) -> list[int]:
        """Numbers of the operations that make what the storages hold."""
        found: set[int] = set()
        left = [(key, len(self._operations)) for key in keys]
        seen = set(left)
        while left:
            key, before = left.pop()
            for number in reversed(self._writers[key]):
                if number >= before:
                    continue
                operation = self._operations[number]
                if number not in found:
                    found.add(number)
                    more = {(read, number) for read in operation.reads} - seen
                    seen |= more
                    left += more
                if key in operation.clears:
                    break
        return sorted(found)

    def _without_numbers(self, x: Any, aliased: bool) -> Any:
        """A tensor from outside becomes a constant."""
        if isinstance(x, UntypedStorage | torch.TypedStorage):
            raise Unrecordable("it uses storages")
        if not isinstance(x, Tensor) or x.is_meta:
            return x
        storage = x.untyped_storage()
        shared = not storage.resizable()  # with NumPy or a file: it may change at any time, so it is read anew each time
        if storage.device != _CPU or (shared and aliased):
            raise Unrecordable("there is a tensor that shares memory with NumPy or a file, or is on another device")
        if shared or storage._cdata not in self._twins:
            twin = UntypedStorage(storage.nbytes(), device="meta")
            self._twins[storage._cdata] = (storage, twin)
            self._storages[twin._cdata] = twin
            with _disable_current_modes():
                self.constants[twin._cdata] = storage.clone()
        twin = self._twins[storage._cdata][1]
        return View(twin._cdata, x.dtype, x.shape, x.stride(), int(x.storage_offset())).of(twin)

    def _record(self, function: Any, leaves: list[Any], spec: TreeSpec) -> Any:
        views = [self.view(x) if isinstance(x, Tensor) else x for x in leaves]  # before it changes what they view
        args, kwargs = tree_unflatten(leaves, spec)
        returns = [str(r.type) for r in function._schema.returns]
        if returns and not any("Tensor" in kind for kind in returns):
            # A number is asked for (`item`, `equal`): the recorded code may go one way or another by it.
            return self._now(function, leaves, spec)
        written = [self.view(x) for x in aliased(function, args, kwargs, to_write=True)]
        inputs = {view.key for view in views if isinstance(view, View)}
        random = torch.Tag.nondeterministic_seeded in function.tags
        # A draw that fills a tensor is run below; what torch does in its place on meta tensors would import its compiler.
        result = args[0] if random and function in _OVERWRITE else self._shapes(function, leaves, spec)
        outputs: list[View | None] = []
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and not x.is_meta:
                raise Unrecordable(f"{function} gives numbers")
            if isinstance(x, Tensor):
                self._storages.setdefault(x.untyped_storage()._cdata, x.untyped_storage())
            outputs.append(self.view(x) if isinstance(x, Tensor) else None)
        fresh = {v.key for v in outputs if v is not None} - inputs
        if not (written or fresh):
            return result  # only another view
        over = written if function in _OVERWRITE else []
        clears = {v.key for v in over if v.dense_bytes == self._storages[v.key].nbytes()}
        read = [v for v in views if isinstance(v, View)]
        for v in over:
            read.remove(v)  # once: it may be the source too
        generator = next((x for x in leaves if isinstance(x, Generator)), torch.default_generator) if random else None
        operation = _Operation(
            function,
            [_CPU if isinstance(x, torch.device) else x for x in views],
            spec,
            outputs,
            reads=frozenset(v.key for v in read),
            writes=frozenset({v.key for v in written} | fresh),
            clears=frozenset(clears | fresh),
            dtype=torch.get_default_dtype(),
            generator=generator,
            state=None if generator is None else generator.get_state(),
        )
        if random:
            self._run(operation, self._play(operation.reads))
        for key in operation.writes:
            self._writers[key].append(len(self._operations))
        self._operations.append(operation)
        return result

    def _shapes(self, function: Any, leaves: list[Any], spec: TreeSpec) -> Any:
        """The result without numbers."""
        args, kwargs = tree_unflatten(leaves, spec)
        takes_device = any(a.name == "device" for a in function._schema.arguments)
        device = kwargs.get("device")
        if takes_device and (device is not None or not any(isinstance(x, Tensor) for x in leaves)):
            place = "cpu" if device is None else device.type
            if place not in ("cpu", "meta") or (place == "cpu" and function is _aten._to_copy.default):
                raise Unrecordable(f"{function} moves tensors between devices")
            kwargs = {**kwargs, "device": _META}
        try:
            return function(*args, **kwargs)
        except NotImplementedError:  # shapes that depend on the numbers, or that torch does not foresee
            if torch.Tag.nondeterministic_seeded in function.tags or aliased(function, args, kwargs):
                raise
            return tree_map_only(Tensor, _empty, self._now(function, leaves, spec))

    def _now(self, function: Any, leaves: list[Any], spec: TreeSpec) -> Any:
        args, kwargs = tree_unflatten([self.value(x) if isinstance(x, Tensor) else x for x in leaves], spec)
        with torch.no_grad():
            return function(*args, **kwargs)

    def _storage(self, key: int, values: dict[int, UntypedStorage], write: bool = False) -> UntypedStorage:
        if key not in values and key in self.constants:
            if not write:
                return self.constants[key]
            values[key] = self.constants[key].clone()
        if key not in values:  # about to be overwritten
            values[key] = UntypedStorage(self._storages[key].nbytes())
        return values[key]

    def _run(self, operation: _Operation, values: dict[int, UntypedStorage]) -> None:
        default = torch.get_default_dtype()
        with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
            leaves = [
                x.of(self._storage(x.key, values, write=x.key in operation.writes)) if isinstance(x, View) else x
                for x in operation.leaves
            ]
            args, kwargs = tree_unflatten(leaves, operation.spec)
            if operation.generator is not None:
                assert operation.state is not None
                operation.generator.set_state(operation.state)
            torch.set_default_dtype(operation.dtype)
            try:
                result = operation.function(*args, **kwargs)
            finally:
                torch.set_default_dtype(default)
            for view, x in zip(operation.outputs, tree_leaves(result), strict=True):
                if view is None or view.key in values or view.key in self.constants:
                    continue
                if (x.stride(), x.storage_offset()) != (view.stride, view.offset):
                    laid = view.of(UntypedStorage(self._storages[view.key].nbytes()))
                    x = laid.copy_(x)
                values[view.key] = x.untyped_storage()
