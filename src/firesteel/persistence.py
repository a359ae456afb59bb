"""Models on disk: `model.safetensors` with the weights and `model.json` with how to build the module around them.

The module comes back by the import path of its class (or factory) and plain arguments where these are known, else as a
program of `torch.export`, else, only when asked for, by pickle. Loading a pickle runs code, so `load` wants to be told.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import cloudpickle
import safetensors.torch
import torch
from torch import Tensor, nn

from firesteel.errors import UsageError

Format = Literal["auto", "import", "export", "pickle"]


@final
class Exported(nn.Module):
    """A program of `torch.export` as a module that can be pickled and copied; it is always in evaluation mode."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data: bytes = data
        self.program: nn.Module = torch.export.load(io.BytesIO(data)).module()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.program(*inputs)

    def train(self, mode: bool = True) -> Exported:
        return self

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return Exported, (self.data,)


def spec_of(model: nn.Module | Callable[[], nn.Module]) -> dict[str, Any] | None:
    """How to import and call what made the model, or None where that cannot be known.

    Known for modules with an attribute `spec` of that form (those of `firesteel.models` have it), for a function or class
    at the top of a module, and for `functools.partial` of one with plain arguments.
    """
    own = getattr(model, "spec", None)
    if isinstance(own, dict):
        return own
    call, args, kwargs = model, (), {}
    if isinstance(model, functools.partial):
        call, args, kwargs = model.func, model.args, model.keywords
    if isinstance(call, nn.Module):
        return None
    return make_spec(call, args, kwargs)


def make_spec(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The import path and arguments of a call, if it can be made again from them."""
    module, name = getattr(call, "__module__", None), getattr(call, "__qualname__", "<")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        plain = json.loads(json.dumps({"args": list(args), "kwargs": dict(kwargs)}))
    except TypeError:
        return None
    return {"import": f"{module}:{name}", **plain}


def build(spec: dict[str, Any]) -> nn.Module:
    """The module that a spec describes, with fresh parameters."""
    module, _, name = spec["import"].partition(":")
    try:
        call: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the model was made by {spec['import']}, which cannot be imported here: {error}") from error
    return call(*spec["args"], **spec["kwargs"])


def save(
    path: str | Path,
    module: nn.Module,
    spec: dict[str, Any] | None,
    example: tuple[Tensor, ...] | None,
    extra: dict[str, Any],
    format: Format = "auto",
) -> str:
    """Write the model into the folder `path`, replacing what an earlier save left there; returns the format used.

    Raises:
        UsageError: the format asked for (or, with "auto", every safe one) cannot hold this module.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a model is saved as a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    used = "import" if spec is not None else "export"
    if format != "auto":
        used = format
    if used == "import" and spec is None:
        raise UsageError(
            "the model cannot be saved by import path: give train() a class or function at the top of an importable "
            "module, or functools.partial of one with plain arguments; or save with format='export' or 'pickle'."
        )
    described = {"firesteel": 1, "format": used, "spec": spec, **extra}
    if used == "export":
        _export(folder / "model.pt2", module, example)
    elif used == "pickle":
        with (folder / "model.pkl").open("wb") as file:
            cloudpickle.dump(module, file)
    state = {name: x.detach().cpu().contiguous() for name, x in module.state_dict().items()}
    safetensors.torch.save_file(_untied(state), folder / "model.safetensors")
    _ = (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
    return used


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory: tied ones are written each."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, x in state.items():
        out[name] = x.clone() if x.untyped_storage().data_ptr() in seen else x
        seen.add(x.untyped_storage().data_ptr())
    return out


def _export(path: Path, module: nn.Module, example: tuple[Tensor, ...] | None) -> None:
    if example is None:
        raise UsageError("this model is saved by torch.export, which needs an example batch, and the run has none.")
    if isinstance(module, Exported):
        _ = path.write_bytes(module.data)
        return
    rows = torch.export.Dim("rows")
    try:
        program = torch.export.export(module, example, dynamic_shapes=tuple({0: rows} for _ in example))
    except Exception as error:
        raise UsageError(
            f"the model can be saved neither by import path nor by torch.export ({str(error).splitlines()[0]}). Give "
            "train() a class or functools.partial from an importable module, or save with format='pickle'."
        ) from error
    torch.export.save(program, path)


def describe(path: str | Path) -> dict[str, Any]:
    """What `model.json` says."""
    file = Path(path) / "model.json"
    if not file.exists():
        raise UsageError(f"{path} holds no saved model (there is no {file.name} in it).")
    return json.loads(file.read_text())


def load(path: str | Path, *, allow_pickle: bool = False) -> nn.Module:
    """The plain `nn.Module` saved in the folder `path`, in evaluation mode.

    Raises:
        UsageError: there is no model, its class cannot be imported, or it is a pickle and `allow_pickle` is False.
    """
    folder, found = Path(path), describe(path)
    if found["format"] == "export":
        return Exported((folder / "model.pt2").read_bytes())
    if found["format"] == "pickle":
        if not allow_pickle:
            raise UsageError(f"{path} holds a pickle, which runs code when loaded; if you trust it, pass allow_pickle=True.")
        with (folder / "model.pkl").open("rb") as file:
            module = cloudpickle.load(file)
    else:
        module = build(found["spec"])
    _ = module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return module.eval()
