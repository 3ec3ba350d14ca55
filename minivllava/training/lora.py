"""LoRA on the language model, by `peft`, as the original's script `finetune_lora.sh` does it.

Every linear layer of the language model but the head gets an adapter; the projector learns whole, beside it. The
encoders have none. After training the adapters are merged, so that a finished model has no trace of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from minivllava.errors import ConfigError
from minivllava.models.transformers_language import linear_layers
from minivllava.run_config import TrainingConfig


def lora_recipe(config: TrainingConfig) -> TrainingConfig:
    """A recipe with the original's LoRA: rank 128, alpha 256, learning rate 2e-4, and 2e-5 for the projector."""
    return replace(config, lora_rank=128, learning_rate=2e-4, projector_learning_rate=2e-5)


@contextmanager
def lora(language_model: nn.Module, config: TrainingConfig) -> Iterator[nn.Module]:
    """Adapters of `config.lora_rank` for as long as the context lasts; then they are merged into the weights.

    Where an exception ends it, they are taken out, and the weights are what they were: training goes on from its state.
    Inside, the adapters are all that learns of the language model. Raises ConfigError if `peft` is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA needs the package peft, which is not installed: pip install peft.") from error

    names, transposed = adapted_layers(language_model)
    torch.manual_seed(config.seed)  # adapters begin at random
    recipe = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha or 2 * config.lora_rank, lora_dropout=config.lora_dropout,
        bias="none", target_modules=names, fan_in_fan_out=transposed,
    )  # fmt: skip
    device = next(language_model.parameters()).device
    inject_adapter_in_model(recipe, language_model)
    language_model.to(device)
    try:
        yield language_model
    except BaseException:
        take_out(language_model)
        raise
    merge(language_model)


def adapted_layers(language_model: nn.Module) -> tuple[list[str], bool]:
    """Names of the linear layers that get an adapter, and whether their weights are stored transposed (GPT-2's)."""
    modules = language_model.named_modules()
    transposed = [name for name, module in modules if type(module).__name__ == "Conv1D"]
    return linear_layers(language_model) + transposed, bool(transposed)


def merge(language_model: nn.Module):
    """Adds the adapters to the weights and takes them out: plain layers remain."""
    for _, module in _adapters(language_model):
        module.merge()
    take_out(language_model)


def take_out(language_model: nn.Module):
    """Plain layers in place of those with adapters, which are forgotten unless they were merged."""
    for name, module in _adapters(language_model):
        language_model.set_submodule(name, module.get_base_layer())
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config


def _adapters(language_model: nn.Module) -> list[tuple[str, nn.Module]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in language_model.named_modules() if isinstance(module, BaseTunerLayer)]
