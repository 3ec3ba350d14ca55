"""The KV cache: keys and values of all positions so far, so that a new token attends without computing them again."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor, nn

from minivllava.config import LanguageConfig
from minivllava.models.rotary import rotary_angles


class LayerCache(NamedTuple):
    """What one layer needs of the cache in one forward pass."""

    keys: Tensor  # (b, k, used, e), of the positions that attention reads
    values: Tensor
    # where new positions go: the same in all rows, or rows (b, 1) and places (b, s)
    places: slice | tuple[Tensor, Tensor]
    mask: Tensor | None  # added to scores, 0 or -inf, (b, 1, s, used); None: nothing is masked by it
    causal: bool  # whether each new position sees itself and the earlier ones only; without it and without a mask, all

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values (b, k, s, e); returns all there are to attend to."""
        for stored, new in ((self.keys, key), (self.values, value)):
            if isinstance(self.places, slice):
                stored[:, :, self.places] = new
            else:
                rows, positions = self.places  # for `scatter_`, torch.compile would copy the whole cache and back
                stored[rows, :, positions] = rearrange(new, "b k s e -> b s k e")
        return self.keys, self.values


@dataclass
class KVCache:
    """Keys and values of every layer for positions 0 .. size - 1, written in place.

    Each row of a batch writes at its own positions, so conversations of different lengths decode together.
    """

    keys: Tensor  # (layer, b, k, size, e)
    values: Tensor
    angles: tuple[Tensor, Tensor]  # cos and sin of every position, (size, e) each
    used: int = 0  # positions 0 .. used - 1 may hold something; attention reads no further
    recordings: dict = field(default_factory=dict)  # decoding steps that run on this memory: see `decoding`

    @classmethod
    def empty(cls, config: LanguageConfig, batch: int, size: int, like: Tensor) -> "KVCache":
        head_width = config.width // config.heads
        shape = (config.layers, batch, config.kv_heads, size, head_width)
        positions = torch.arange(size, device=like.device)[None]
        angles = rotary_angles(positions, head_width, config.rope_theta, config.rope_scaling)
        return cls(like.new_zeros(shape), like.new_zeros(shape), tuple(table.to(like)[0, 0] for table in angles))

    @property
    def size(self) -> int:
        return self.keys.shape[3]

    def serves(self, batch: int, size: int, like: Tensor) -> bool:
        """Whether it has these rows, at least this many positions, and the dtype and device of `like`."""
        same = (self.keys.shape[1], self.keys.dtype, self.keys.device) == (batch, like.dtype, like.device)
        return same and self.size >= size

    def clear(self, filled: int = 0) -> "KVCache":
        """Empties it, in place, but for the first `filled` positions, which are written before they are read. What it
        held could otherwise spoil what follows, masked as it is: 0 * NaN is NaN."""
        for stored in (self.keys, self.values):
            stored[:, :, :, filled:].zero_()
        self.used = 0
        return self

    def first(self, size: int) -> "KVCache":
        """The same memory up to position size - 1, read as a whole: every step then has the same shapes, and nobody
        has to ask the device how far the cache is filled."""
        return KVCache(self.keys[:, :, :, :size], self.values[:, :, :, :size], self.angles, used=size)

    def angles_at(self, positions: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions (b, s), or of 0 .. length - 1, for `rotate`: (b or 1, 1, s, e) each, looked up."""
        if positions is None:
            return tuple(table[None, None, :length] for table in self.angles)
        return tuple(table[positions[:, None]] for table in self.angles)

    def begin(self, positions: Tensor | None, length: int) -> list[LayerCache]:
        """Each layer's share, for new positions (b, s); None: `length` of them from 0 on, as if it was empty."""
        places, mask, causal = slice(0, length), None, True
        if positions is None:
            self.used = length
        else:
            first, last = self._range(positions)
            self.used, causal = max(self.used, last + 1), False
            if length == 1 and first == self.used - 1:  # the end of all rows
                places = slice(first, first + 1)
            else:
                places = torch.arange(len(positions), device=positions.device)[:, None], positions
                unseen = torch.arange(self.used, device=positions.device) > positions[:, None, :, None]
                mask = self.keys.new_zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
        layers = (stored[:, :, :, : self.used].unbind() for stored in (self.keys, self.values))
        return [LayerCache(keys, values, places, mask, causal) for keys, values in zip(*layers, strict=True)]

    def _range(self, positions: Tensor) -> tuple[int, int]:
        """The first and the last of the positions. Where all of the cache is read they may be any: to ask the device
        would make the CPU wait for it."""
        if self.used == self.size:
            return 0, self.size - 1
        return tuple(int(position) for position in positions.aminmax())


ROOM = 256  # positions: caches have multiples of it, so that answers of about one length can use one in turn

_kept: WeakKeyDictionary[nn.Module, KVCache] = WeakKeyDictionary()  # by language model


def room_for(positions: int) -> int:
    """The size of a cache for this many positions: the next multiple of ROOM."""
    return math.ceil(positions / ROOM) * ROOM


def new_or_kept(language_model: nn.Module, prompts: Tensor, positions: int):
    """An empty cache for a batch of prompts (b, s, d) and their answers, of this many positions in all: the one that
    `keep` kept, if it is large enough. The prompts are to be written first, from position 0 on."""
    batch, length = prompts.shape[:2]
    size, kept = room_for(positions), _kept.pop(language_model, None)  # nobody else may get it meanwhile
    if kept is not None and kept.serves(batch, size, prompts):
        return kept.clear(filled=length)
    del kept  # its memory is free before another one is made
    return language_model.new_cache(batch, size, prompts)


def keep(language_model: nn.Module, cache):
    """Keeps the cache of a finished answer for the next one, if steps were recorded on it; it replaces the last one."""
    if isinstance(cache, KVCache) and cache.recordings:
        _kept[language_model] = cache


def release(model: nn.Module):
    """Frees the memory of the cache that was kept for a model or for one of its parts; training does so first.

    Nothing else has to: a recording is replayed only while the weights lie where it reads them (see `decoding`).
    """
    for module in model.modules():
        _kept.pop(module, None)
