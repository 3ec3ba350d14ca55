"""Activation checkpointing: what a layer of the language model does not keep, the backward pass computes again.

recomputed_layers: the first layers, this many, keep their input alone. 7B then trains in the memory of its weights,
gradients and optimiser, for a third more arithmetic. recompute_elementwise: the other layers keep the results of their
matrix products and of attention, but no norms, rotations and activations: a third of the memory, for little of the time
(selective recomputation, arXiv 2205.05198). compiled: torch.compile fuses elementwise operations into few kernels, and
chooses by itself which of their results are kept. Gradients stay the same, up to rounding where kernels are fused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from minivllava.errors import ConfigError
from minivllava.models.compiled_layers import compiled, frozen, learning
from minivllava.models.language import LanguageModel
from minivllava.models.transformers_language import TransformersLanguageModel
from minivllava.run_config import TrainingConfig

# what costs most of a layer's time, by the names that PyTorch dispatches; everything else is elementwise
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


@contextmanager
def recomputing(language_model: LanguageModel | TransformersLanguageModel, training: TrainingConfig) -> Iterator[None]:
    """Inside, a language model recomputes its activations as the recipe asks. To be entered before training wraps it.

    Of a model of `transformers` all layers are computed again, or none. Raises ConfigError where
    `recompute_elementwise` or `compiled` is asked of one, and for one that cannot recompute.
    """
    if isinstance(language_model, TransformersLanguageModel):
        for name in ("recompute_elementwise", "compiled"):
            if getattr(training, name):
                raise ConfigError(f"{name}: only this package's own decoder can; use recomputed_layers.")
        recompute_all(language_model.model, training.recomputed_layers > 0)
        try:
            yield
        finally:
            recompute_all(language_model.model, False)
        return
    keep_products = partial(create_selective_checkpoint_contexts, PRODUCTS)
    changed = []
    for number, layer in enumerate(language_model.layers):
        run = layer.forward
        if training.compiled:
            learns = any(weight.requires_grad for weight in layer.parameters())
            run = partial(compiled(learning if learns else frozen), layer)
        if number < training.recomputed_layers:
            run = partial(checkpoint, run, use_reentrant=False)
        elif training.recompute_elementwise and not training.compiled:
            run = partial(checkpoint, run, use_reentrant=False, context_fn=keep_products)
        if run != layer.forward:
            layer.forward = run
            changed.append(layer)  # training may put a wrapper in its place
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward  # its class has the usual one


def check_recomputation(language_model: nn.Module, training: TrainingConfig):
    """Raises ConfigError where a language model cannot recompute its activations as the recipe asks."""
    with recomputing(language_model, training):
        pass


def recompute_all(model: nn.Module, on: bool = True):
    """Switches a model of `transformers` to computing all of its layers again, or back. Raises ConfigError for one that
    cannot."""
    # the first name is the newer one, transformers 5.17 has only the second
    newer = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if newer else "gradient_checkpointing"
    if not on:
        getattr(model, f"{name}_disable")()
        return
    try:
        getattr(model, f"{name}_enable")({"use_reentrant": False})
    except ValueError as error:  # of those without
        raise ConfigError(
            f"recomputed_layers: transformers cannot recompute those of a {model.config.model_type!r}: set it to 0."
        ) from error
