"""A network of which any piece can be made real, with the numbers that the whole would have had."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from firesteel import randomness
from firesteel.errors import UsageError
from firesteel.parts.cuts import Piece
from firesteel.parts.pretence import Unrecordable
from firesteel.parts.tape import Tape, View


@final
class Blueprint:
    """A network without its numbers, and how each of them comes to be.

    The numbers are those, bit for bit, of `randomness.initialise(seed); build()`, but only one tensor of the network, and
    what it is made from, is in memory at a time. A build may do nearly what it likes: it may draw, scale, copy, tie, read
    single numbers (`.item()`) and seed generators. One that goes round torch's operations (NumPy, files, other devices),
    or that gives a network that has numbers already, or tensors that are neither parameters nor buffers, is run a second
    time, for real, and what it gives is held `whole`.

    Torch's global generator of the CPU is left as it was. One of the caller's own that the build draws from is moved by
    `of`, as the build would move it, but not by `fill`.

        >>> from firesteel.parts.cuts import Cut
        >>> blueprint = Blueprint.of(lambda: nn.Linear(3, 2), seed=0)
        >>> blueprint.module.weight.device.type
        'meta'
        >>> row = torch.empty(1, 3)
        >>> blueprint.fill([(row, Piece("weight", Cut((2, 3), 0, ((1, 2),))))])
        >>> randomness.initialise(0)
        >>> torch.equal(row, nn.Linear(3, 2).weight[1:])
        True
    """

    def __init__(self, module: nn.Module, tape: Tape, views: dict[str, View], reason: str | None = None) -> None:
        self.module: nn.Module = module
        """On the device "meta"; structure, names, shapes and dtypes as `build` gives them. What is neither parameter nor buffer
        is real."""
        self.reason: str | None = reason
        """Why the build could not be recorded, in a line; None if it could."""
        self._tape: Tape = tape
        self._views: dict[str, View] = views

    @classmethod
    def of(cls, build: Callable[[], nn.Module], seed: int) -> Blueprint:
        """Takes about as long as the build. Raises what the build raises, and `UsageError` for a lazy module."""
        with torch.random.fork_rng(devices=[]):
            try:
                return cls._recorded(build, seed)
            except Exception as error:  # whatever went wrong: without a tape the build works, or says itself what is wrong
                reason = (str(error) or type(error).__name__).splitlines()[0]
            return cls._built(build, seed, reason)

    @classmethod
    def _recorded(cls, build: Callable[[], nn.Module], seed: int) -> Blueprint:
        randomness.initialise(seed)
        with Tape() as tape:
            module = build()
        if tape.blame.error is not None:
            raise tape.blame.error
        tensors = _tensors(module)
        if not all(x.is_meta for x in tensors.values()):
            raise Unrecordable("it gives a network that has numbers already")
        _refuse_others(module, {id(x) for x in tensors.values()})
        return cls(module, tape, {name: tape.view(x) for name, x in tensors.items()})

    @classmethod
    def _built(cls, build: Callable[[], nn.Module], seed: int, reason: str) -> Blueprint:
        randomness.initialise(seed)
        module = build()
        tape, tensors = Tape(), _tensors(module)
        for name, x in tensors.items():
            if x.is_meta:
                raise UsageError(f'{name} has no numbers: the build puts it on the device "meta"; make it on the CPU.')
        views = {name: tape.keep(x) for name, x in tensors.items()}
        empty = {id(x): _like(x) for x in tensors.values()}
        return cls(copy.deepcopy(module, empty), tape, views, reason)

    @property
    def whole(self) -> bool:
        """Whether it holds numbers as large as half of the network's, or more, in memory."""
        kept = sum(storage.nbytes() for storage in self._tape.constants.values())
        return kept > 0 and 2 * kept >= sum({id(x): x.nbytes for x in _tensors(self.module).values()}.values())

    def fill(self, wanted: Iterable[tuple[Tensor, Piece]]) -> None:
        """Write the initial numbers of each piece, named as parameter or buffer of the whole, into its tensor, in place."""
        by_storage: defaultdict[int, list[tuple[Tensor, Piece]]] = defaultdict(list)
        for target, piece in wanted:
            view = self._views[piece.name]
            if piece.cut.whole != view.shape or piece.cut.shape != target.shape:
                raise UsageError(
                    f"{piece.name} has the shape {tuple(view.shape)}: {piece.cut} of it does not go into {tuple(target.shape)}."
                )
            by_storage[view.key].append((target, piece))
        for key, pieces in by_storage.items():
            self._fill(key, pieces)

    @torch.no_grad()
    def _fill(self, key: int, pieces: list[tuple[Tensor, Piece]]) -> None:
        """From one storage, which is gone before the next one is played."""
        storage = self._tape.play({key})[key]
        for target, piece in pieces:
            whole = self._views[piece.name].of(storage)
            target.copy_(whole if piece.cut.dim is None else piece.cut.take(whole))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by all their names."""
    found = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, x in found.items():
        if nn.parameter.is_lazy(x):
            raise UsageError(f"{name} has no shape yet: give the module its sizes instead of a Lazy one.")
    return found


def _refuse_others(module: nn.Module, own: set[int]) -> None:
    """Raise `Unrecordable` for a tensor without numbers that a module keeps besides its `own` parameters and buffers, by id.

    One that was computed from parameters does not count: forward makes it anew, or it could not be trained.
    """
    for each in module.modules():
        for name, value in vars(each).items():
            kept = [x for x in tree_leaves(value) if isinstance(x, Tensor) and id(x) not in own]
            if any(x.is_meta and x.is_leaf for x in kept):
                raise Unrecordable(f"{type(each).__name__}.{name} is a tensor, but neither a parameter nor a buffer")


def _like(x: Tensor) -> Tensor:
    """The same without numbers."""
    empty = torch.empty_like(x, device="meta", requires_grad=False)
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
