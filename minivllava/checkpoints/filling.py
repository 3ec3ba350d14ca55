"""Stored tensors into a model: every name and shape is checked before a tensor is read, then they are read one after
another and cast at once, so that the peak of memory is the model in its final dtype and little more."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minivllava.checkpoints.weights import Weights, not_floating, raise_problems, refuse_overflow
from minivllava.models.language import LanguageModel
from minivllava.models.transformers_language import TransformersLanguageModel


@dataclass
class StoredPart:
    """Which stored tensors become which of a model's."""

    weights: Weights
    names: dict[str, str]  # the model's name -> the stored one
    elsewhere: tuple[str, ...] = ()  # prefixes of stored tensors that this model does not take from here
    lora: dict[str, tuple[str, str]] = field(default_factory=dict)  # the model's name -> those of A and B
    lora_rank: int = 0
    lora_scale: float = 1.0  # the weight is W + lora_scale * B @ A


class WithoutFirstWeights(TorchFunctionMode):
    """A context in which modules are built without drawing their first weights.

    On the meta device there is nothing to draw, and torch would import its compiler to find that out: two seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def fill(model: nn.Module, parts: Sequence[StoredPart], device, dtype: torch.dtype) -> nn.Module:
    """Puts stored tensors into a model that was built on the meta device. Returns it, in eval mode.

    Raises CheckpointError that names every tensor that is missing, unexpected or misshapen.
    """
    expected, tied = model.state_dict(), _tied(model)
    for part in parts:
        _check(part, expected, tied)
    loaded: dict[str, Tensor] = {}
    for part in parts:
        adapters = _whole(part.weights, [name for pair in part.lora.values() for name in pair])
        ours = {stored: name for name, stored in part.names.items() if name not in tied}
        for stored, rows, tensor in part.weights.read(ours):
            name = ours[stored]
            if name in part.lora:
                down, up = (adapters[adapter] for adapter in part.lora[name])
                tensor = tensor.float() + part.lora_scale * up[rows] @ down
            if name not in loaded:
                kind = dtype if expected[name].is_floating_point() else expected[name].dtype
                loaded[name] = torch.empty(expected[name].shape, dtype=kind, device=device)
            loaded[name][rows] = tensor
            refuse_overflow(stored, tensor, loaded[name][rows])
            del tensor
    for part in parts:
        _check_tied(part, loaded, tied)
    loaded |= {name: loaded[twin] for name, twin in tied.items()}
    model.load_state_dict(loaded, assign=True)
    for module in model.modules():
        if isinstance(module, LanguageModel | TransformersLanguageModel):
            module.tie()
    return model.to(device).eval()  # buffers that no file holds are still on the device they were made on


def count_weights(model: nn.Module) -> int:
    """How many numbers a model holds, tied ones once."""
    tied = _tied(model)
    return sum(tensor.numel() for name, tensor in model.state_dict().items() if name not in tied)


def _check(part: StoredPart, expected: dict[str, Tensor], tied: dict[str, str]):
    """Raises CheckpointError for tensors that are missing, unexpected, misshapen or no floating-point numbers."""
    stored = part.weights.entries
    adapters = {name for pair in part.lora.values() for name in pair}
    needed = {name for ours, name in part.names.items() if ours not in tied} | adapters
    known = needed | set(part.names.values())
    problems = [f"missing {name}" for name in sorted(needed - set(stored))]
    problems += [
        f"unexpected {entry.name}"
        for name, entry in stored.items()
        if name not in known and not name.startswith(part.elsewhere or ("\0",))
    ]
    for ours, name in part.names.items():
        if name in stored and stored[name].shape != expected[ours].shape:
            problems.append(f"{stored[name].name} is {stored[name].shape}, not {tuple(expected[ours].shape)}")
        if name in stored and expected[ours].is_floating_point():
            problems += not_floating([stored[name]])
    for ours, (down, up) in part.lora.items():
        if down in stored and up in stored:
            rank = part.lora_rank
            rows, columns = expected[ours].shape
            wanted = {down: (rank, columns), up: (rows, rank)}
            problems += [f"{n} is {stored[n].shape}, not {s}" for n, s in wanted.items() if stored[n].shape != s]
            problems += not_floating([stored[down], stored[up]])
    raise_problems(problems, part.weights.where)


def _tied(model: nn.Module) -> dict[str, str]:
    """The names of weights that are another one's: heads that share the token embedding."""
    tied = {}
    for name, module in model.named_modules():
        if isinstance(module, LanguageModel | TransformersLanguageModel):
            prefix = f"{name}." if name else ""
            tied |= {f"{prefix}{theirs}": f"{prefix}{twin}" for theirs, twin in module.tied.items()}
    return tied


def _check_tied(part: StoredPart, loaded: dict[str, Tensor], tied: dict[str, str]):
    """A head that the config ties to the embedding may be stored too, but then as the same numbers."""
    for name, twin in tied.items():
        stored = part.names.get(name)
        entry = part.weights.entries.get(stored)
        if entry is None or entry == part.weights.entries.get(part.names.get(twin)):
            continue
        for _, rows, tensor in part.weights.read([stored]):
            if not torch.equal(tensor.to(loaded[twin]), loaded[twin][rows]):
                raise_problems([f"{entry.name} is not the token embedding, to which the config ties it"], entry.file)


def _whole(weights: Weights, names: list[str]) -> dict[str, Tensor]:
    """Some stored tensors by name, in float32."""
    found = {name: torch.empty(weights.entries[name].shape) for name in names}
    for name, rows, tensor in weights.read(names):
        found[name][rows] = tensor
    return found
