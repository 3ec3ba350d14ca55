"""Weight-only quantisation of the language model, by `torchao`: int8 per row, or int4 in groups of a row.

Activations, encoders, projector, embeddings and the head keep their precision. Only the layers' weights are
rounded; each multiplication turns them back. A quantised model answers, and can be neither trained nor saved.
"""

from pathlib import Path

import torch
from torch import nn

from minivllava.checkpoints.filling import WithoutFirstWeights, count_weights
from minivllava.checkpoints.memory import require_bytes
from minivllava.config import ModelConfig
from minivllava.errors import ConfigError, check_choice, short_reason
from minivllava.models.transformers_language import linear_layers
from minivllava.models.vllava import VideoLLaVA

QUANTIZATIONS = ("int8", "int4")
GROUPS = (128, 64, 32)  # weights that share a scale in int4


def require_torchao(kind: str):
    """Raises ConfigError for a kind that does not exist, or if `torchao` is missing."""
    check_choice("quantisation", kind, QUANTIZATIONS)
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{kind} needs the package torchao, which is not installed: pip install torchao.") from error


def require_rounded_memory(config: ModelConfig, kind: str, dtype: torch.dtype, device, where: str | Path):
    """Raises CheckpointError if a model whose language model is rounded would not fit into the device's memory."""
    with torch.device("meta"), WithoutFirstWeights():
        model = VideoLLaVA(config)
    everything, decoder = count_weights(model), model.language_model
    rounded = sum(decoder.get_submodule(name).weight.numel() for name in linear_layers(decoder))
    packed = kind == "int4" and torch.device(device).type == "cuda"
    needed = (everything - rounded) * dtype.itemsize + rounded // (2 if packed else 1)
    require_bytes(needed, f"{rounded:,} weights as {kind}, {everything - rounded:,} others", device, where)


def quantize(language_model: nn.Module, kind: str, device: str | torch.device) -> nn.Module:
    """Rounds the weights of a language model's linear layers, in place, each on its way to the device. kind: "int8" or
    "int4".

    On a GPU int4 packs two weights into a byte, and needs bfloat16; elsewhere each takes a byte, as int8 does, so
    int4 shows there what it costs in quality and saves nothing. Raises ConfigError for another kind, a model it does
    not fit, or where `torchao` is missing.
    """
    require_torchao(kind)
    from torchao.quantization import quantize_

    layers = set(linear_layers(language_model))
    if not layers:
        raise ConfigError(f"This language model has no linear layers that {kind} could round: leave it out.")
    modules = dict(language_model.named_modules())
    weight = modules[next(iter(layers))].weight
    widths = {modules[name].in_features for name in layers}
    recipe = _int8() if kind == "int8" else _int4(torch.device(device), weight.dtype, widths)
    language_model.requires_grad_(False)
    try:
        quantize_(language_model, recipe, filter_fn=lambda module, name: name in layers, device=device)
    except (ImportError, NotImplementedError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"torchao cannot do {kind} here ({short_reason(error)}): try int8, or none.") from error
    language_model.quantized = kind
    return language_model


def _int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4(device: torch.device, dtype: torch.dtype, widths: set[int]):
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    group = next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)
    if group is None:
        shown = ", ".join(map(str, sorted(widths)))
        raise ConfigError(f"int4 needs layers whose widths ({shown}) are multiples of {GROUPS[-1]}: use int8.")
    if device.type != "cuda":
        return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))
    if dtype != torch.bfloat16:
        raise ConfigError("int4 on a GPU multiplies in bfloat16: load the model with dtype bfloat16.")
    return Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d")
