"""The network as a strategy sees it. Read this file first.

A strategy is a coroutine that every worker runs. `await` marks exactly the places where it touches the network;
everything between two awaits is plain local PyTorch.

Verbs post at once and return an awaitable. `x = await net.all_reduce(x)` waits; with
`pending = net.all_reduce(g)`, some computing, then `g = await pending`, the two overlap. From the post until the
await, `x` belongs to the net, which may write into it and may hand `x` itself back.

On a real net an await blocks in place: no event loop, no threads, and a traceback runs straight through the
strategy's line into the transport. A net in virtual time suspends there and lets another worker run. For that reason
an await never stands inside a `with torch.no_grad()` block: the other worker would inherit it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, final, runtime_checkable

from torch import Tensor

from firesteel.errors import StrategyError

if TYPE_CHECKING:
    from firesteel.worker import Worker

T = TypeVar("T")
Vec = Tensor  # flat parameters of one model, [P]
Op = Literal["sum", "mean", "max"]
WireType = Literal["float32", "bfloat16", "float16"]


class Net(Protocol):
    """One worker's access to the others. Every member of the net calls the collectives in the same order."""

    @property
    def rank(self) -> int:
        """This worker's number, 0 .. size - 1."""
        ...

    @property
    def size(self) -> int:
        """The number of workers on this net."""
        ...

    def all_reduce(
        self, x: Tensor, op: Op = "mean", weight: float | None = None, wire: WireType | None = None
    ) -> Awaitable[Tensor]:
        """Combine one tensor of every worker; all get the result, [*x.shape].

        With `weight` (>= 0), the mean is weighted: sum_k weight_k x_k / sum_k weight_k; where all weights are 0 it is
        the plain mean. `wire` rounds what is sent to fewer bytes.
        """
        ...

    def all_gather(self, x: Tensor) -> Awaitable[Tensor]:
        """Every worker's `x`, [n, ...], one after the other in order of rank, [size * n, ...]."""
        ...

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Awaitable[Tensor]:
        """Combine like `all_reduce`, but keep only this worker's share, `x.tensor_split(size)[rank]`."""
        ...

    def broadcast(self, x: Tensor, root: int = 0) -> Awaitable[Tensor]:
        """The `x` of worker `root`, at every worker."""
        ...

    def send(self, x: Tensor, to: int, bare: bool = False) -> Awaitable[None]:
        """Send `x` to one worker, which must call `recv`. `bare`: without its shape and type, which that worker knows."""
        ...

    def recv(self, source: int, like: Tensor | None = None) -> Awaitable[Tensor]:
        """The next tensor that worker `source` sends to this one, of any shape and type; sent `bare`, it is `like` another."""
        ...

    # One worker and the server; only for strategies that have a `merge`.

    def pull(self) -> Awaitable[Vec]:
        """The center as it is when the server hears the request, [P]: a tensor of your own."""
        ...

    def push(self, delta: Vec) -> Awaitable[None]:
        """Hand `delta`, [P], to the server's `merge`; what this worker posts is heard in that order."""
        ...

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        """`push` and then `pull` in one message, which halves the latency."""
        ...

    # The gang and the world.

    def group(self, ranks: Sequence[int]) -> Net:
        """A smaller net of these workers, numbered anew in the order given; called by all its members.

        Its `publish` and `resume` are those of the gang.
        """
        ...

    def publish(self, params: Vec, *rest: Tensor) -> None:
        """Show the world the model as it is now, [P] (or [M, P], M members of an ensemble).

        Also a point to resume from: `rest` are the strategy's own tensors; the worker's state is kept beside them.
        All workers publish at the same places, through whichever net they hold. After a request to stop, `worker.steps()`
        ends at the next one.
        """
        ...

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        """`rest` of the point this run resumes from, or `default` at a first start."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """A way to train together: what every worker does, from its first step to the parameters it ends with.

    It may also have
    - `check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None`, which is called before
      anything starts: it raises UsageError for what cannot work, or returns a warning;
    - `review(self, history: list[dict[str, Any]]) -> str | None`, which may return a warning when it has seen the rows of the
      run's history;
    - `parts_of(self, workers: int) -> int` and `part(self, network, nothing, index, parts) -> nn.Module`: the network lies in
      so many parts, of which worker k has the one numbered k % parts; see `firesteel.parts.part`;
    - `native = True`, beside `part`: it gets the module itself in place of a chain of layers, and PyTorch's own sharding moves
      the tensors, which only nets between processes know;
    - `full_batch = True`: each of its steps sees all rows, so that a step is an epoch and there is no batch size;
    - `own_steps = True`: it moves the parameters by a rule of its own, without the run's optimizer;
    - `keeps_best = True`: its progress is not steady, so that the run's model is the published one that scored best in
      validation, and not the last one: by the first metric whose name says which way is better, else by the loss; of those
      since a resume.
    """

    async def run(self, worker: Worker, net: Net) -> Vec:
        """Train and return the final parameters, [P], or [M, P] for an ensemble of M members."""
        ...


@final
@dataclass(frozen=True)
class Push:
    """What a server merges: one worker's `delta`, and what is known about it."""

    delta: Vec
    """[P] of this server's coordinates; not to be written to."""
    staleness: int
    """Pushes of others merged since the sender's last pull, and its own without a pull between."""
    seen: Vec | None
    """The center that the sender pulled last, [P], which `merge` may write to; None unless `needs_seen` is true."""
    worker: int
    sequence: int
    """The sender's pushes, counted from 1."""
    steps: int
    """Local steps of the sender since its last push."""


@runtime_checkable
class ServerStrategy(Protocol):
    """A strategy whose workers talk to a server and do not wait for each other."""

    needs_seen: bool
    """Whether `merge` reads `push.seen`; the server then keeps one center for each worker."""

    async def run(self, worker: Worker, net: Net) -> Vec: ...

    def merge(self, center: Vec, push: Push) -> None:
        """Write `center`, [P], in place. Pushes come one at a time, in order of arrival; each server of a run holds its
        own coordinates, so the rule must be elementwise in them."""
        ...


def has_server(strategy: object) -> bool:
    """Whether a strategy is a `ServerStrategy`."""
    return callable(getattr(strategy, "merge", None))


def full_batch(strategy: object) -> bool:
    """Whether each step of a strategy sees all rows."""
    return bool(getattr(strategy, "full_batch", False))


def own_steps(strategy: object) -> bool:
    """Whether a strategy leaves the run's optimizer alone."""
    return bool(getattr(strategy, "own_steps", False))


def splits(strategy: object) -> bool:
    """Whether a strategy's workers have the network in parts."""
    return callable(getattr(strategy, "part", None))


def native(strategy: object) -> bool:
    """Whether PyTorch's own sharding carries a strategy, which needs workers that are processes."""
    return bool(getattr(strategy, "native", False))


def keeps_best(strategy: object) -> bool:
    """Whether a run keeps the model that scored best, rather than the last."""
    return bool(getattr(strategy, "keeps_best", False))


def drive(program: Coroutine[Any, Any, T]) -> T:
    """Run a program on a real net, whose awaits block in place and never suspend."""
    try:
        program.send(None)
    except StopIteration as end:
        return end.value
    program.close()
    raise StrategyError(
        "the strategy awaited something that is not a verb of its net (asyncio's sleep, say); "
        "between two verbs write plain PyTorch without await"
    )
