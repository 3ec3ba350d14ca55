"""Rotary positions: each head's queries and keys are turned by angles that grow with the position.

The two *halves* of a head are rotated against each other, as in the Hugging Face code that Vicuna's weights are stored
for; the LLaMA paper rotates neighbouring pairs.
"""

import math

import torch
from torch import Tensor

from minivllava.config import RopeScaling


def rotary_angles(
    positions: Tensor, head_width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, for `rotate`. positions (b, s) -> two (b, 1, s, e).

    The first half of the sines is negated: the minus sign of a rotation, (x cos - y sin, y cos + x sin).
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions.float()[..., None] * scaled_frequencies(1.0 / theta**exponents, scaling)  # b s e/2
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    """The rotary frequencies of a model with a longer context than it was pre-trained with: (e/2,) -> (e/2,)."""
    if scaling is None:
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the context of pre-training
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return torch.lerp(slowed, frequencies, ((turns - low) / (high - low)).clamp(0, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head's two halves against each other by its position's angle. (b, k, s, e)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), torch.cat([second, first], dim=-1), sin.to(x.dtype))
