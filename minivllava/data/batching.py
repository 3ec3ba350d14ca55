"""Tensors of different shapes in batches: those of one shape together."""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor


def batched_by_shape(
    tensors: Sequence[Tensor],
    run: Callable[[Tensor], Iterable[Tensor]],
    alike: Callable[[Tensor], Hashable] = lambda tensor: tensor.shape,
) -> list[Tensor]:
    """What `run` makes of each tensor, in their order; it is given a batch (b, ...) of all tensors of one shape.

    alike: what tensors of one batch have in common, where less than the shape tells.
    """
    found: list[Tensor | None] = [None] * len(tensors)
    for kind in {alike(tensor) for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if alike(tensor) == kind]
        results = run(torch.stack([tensors[place] for place in places]))
        for place, result in zip(places, results, strict=True):
            found[place] = result
    return found
