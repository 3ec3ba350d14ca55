"""Comparisons for the assignments' checks: each says what is wrong, in words a student can act on.

They look at types first, so an object whose `==` always says yes, or a tensor subclass, does not pass.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def expect(condition, message: str):
    """Raises AssertionError with `message` unless the condition, a bool or a one-element bool tensor, holds."""
    if isinstance(condition, Tensor) and condition.numel() == 1:
        condition = condition.item()
    if type(condition) not in (bool, np.bool_):
        raise AssertionError(f"{message} (the comparison gave a {type(condition).__name__}, not True or False)")
    if not condition:
        raise AssertionError(message)


def same(found, wanted, message: str):
    """Plain values are equal, type and all: int, float, bool, str, None, and lists, tuples, dicts of those."""
    if not _same(found, wanted):
        raise AssertionError(f"{message}: expected {_short(wanted)}, got {_short(found)}")


def _same(found, wanted) -> bool:
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(_same(f, w) for f, w in zip(found, wanted, strict=True))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def shaped(found, shape: Sequence[int], message: str):
    """A tensor of this shape."""
    if type(found) not in (Tensor, torch.nn.Parameter):
        raise AssertionError(f"{message}: expected a tensor of shape {tuple(shape)}, got a {type(found).__name__}")
    if tuple(found.shape) != tuple(shape):
        raise AssertionError(f"{message}: expected shape {tuple(shape)}, got {tuple(found.shape)}")


def close(found, wanted: Tensor, message: str, tolerance: float = 1e-4):
    """A finite tensor of the wanted shape, equal to within `tolerance` of the wanted one's largest value."""
    shaped(found, wanted.shape, message)
    if not closely(found, wanted, tolerance):
        gap = (found.detach().double() - wanted.double()).abs().max().item()
        raise AssertionError(f"{message} (largest difference {gap:.2g})")


def closely(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree as `close` asks; for telling one mistake from another."""
    if tuple(found.shape) != tuple(wanted.shape):
        return False
    found, wanted = found.detach().double(), wanted.detach().double()
    if not bool(torch.isfinite(found).all()):
        return False
    if not wanted.numel():
        return True
    return bool((found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max())))


def near(found, wanted: float, message: str, tolerance: float = 1e-6):
    """A number, equal to within `tolerance`; a one-element tensor counts as its number."""
    number = found.item() if type(found) in (Tensor, torch.nn.Parameter) and found.numel() == 1 else found
    if type(number) not in (int, float, np.float64, np.float32, np.int64):
        raise AssertionError(f"{message}: expected the number {wanted:.6g}, got a {type(found).__name__}")
    if not abs(float(number) - wanted) <= tolerance:
        raise AssertionError(f"{message}: expected {wanted:.6g}, got {float(number):.6g}")
