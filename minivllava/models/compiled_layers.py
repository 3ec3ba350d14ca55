"""Decoder layers through torch.compile. It keeps what it makes, and counts it, by function: each use has its own."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def one_token(layer: nn.Module, *inputs) -> Tensor:
    """A step of decoding: one token of each row."""
    return type(layer).forward(layer, *inputs)


def prompt(layer: nn.Module, *inputs) -> Tensor:
    """Prefill: prompts of any length."""
    return type(layer).forward(layer, *inputs)


def frozen(layer: nn.Module, *inputs) -> Tensor:
    """Training where the layer's weights are frozen, as in stage 1."""
    return type(layer).forward(layer, *inputs)


def learning(layer: nn.Module, *inputs) -> Tensor:
    """Training of the layer's weights. With the function above torch 2.11 would reuse what it compiled for frozen
    weights, without their gradients."""
    return type(layer).forward(layer, *inputs)


@functools.cache
def compiled(use: Callable) -> Callable:
    """One of these functions through torch.compile; all layers share it."""
    if use is one_token:
        # the tuning pays for products with a single row, which then read their weights at the memory's full speed
        return torch.compile(use, options={"coordinate_descent_tuning": True})
    return torch.compile(use, dynamic=True)
