"""Decoding steps: one new token of each row, from the KV cache to the next logits.

On a CUDA GPU the kernels of a step are recorded once, as a CUDA graph, and then replayed: launching them one by one
from Python takes longer than the GPU needs to run them. A graph is bound to the memory that it reads and writes, so it
is kept with its cache, and the last cache with its language model: the next answer of as many rows and as much room
records nothing. Forward hooks would not run in a replay, so a model that has some is not recorded. `compiled` adds
torch.compile, which fuses the kernels of a layer; compiling takes long, so it is for long answers and many of them. On
a CPU neither is worth its time at the sizes that a CPU can run.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minivllava.models.kv_cache import KVCache, room_for

RECORDED = {"cuda"}  # devices that can record a step
WORTH_RECORDING = 16  # recording takes as long as a few steps: shorter answers do without


class Recording:
    """A decoding step as a CUDA graph: it reads `tokens` and `positions`, (b, 1) each, and writes `logits` (b, v)."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], positions: Tensor, weights: list[int]):
        self.weights = weights  # where they lie: the graph reads them there
        self.tokens, self.positions = torch.zeros_like(positions), positions.clone()
        device = positions.device
        with torch.cuda.device(device):
            aside = _side_stream(device)
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries set up what must not be set up while being recorded
                step(self.tokens, self.positions)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may use the GPU meanwhile
                self.logits = step(self.tokens, self.positions)

    def replay(self):
        self.graph.replay()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: each stream keeps a workspace of its own."""
    return torch.cuda.Stream(device)


class DecodingStep:
    """Reads one token of each row, (b,), and gives the logits of the next, (b, v).

    positions (b, 1): where each row goes on; end: no row goes beyond position end - 1; steps: how many are to come.
    """

    def __init__(self, language_model, cache, positions: Tensor, end: int, steps: int, compiled: bool):
        self.language_model, self.cache, self.compiled, self.last = language_model, cache, compiled, end - 1
        self.positions = positions  # in place from here on
        ours, self.recording = isinstance(cache, KVCache), None
        if ours and (compiled or positions.device.type in RECORDED):
            self.cache = cache.first(min(cache.size, room_for(end)))
        if ours and positions.device.type in RECORDED and steps >= WORTH_RECORDING and not _watched(language_model):
            self.recording = self._recorded(cache.recordings)
            self.recording.positions.copy_(positions)
            self.positions = self.recording.positions

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.recording is None:
            logits = self._step(tokens[:, None], self.positions)
        else:
            self.recording.tokens.copy_(tokens[:, None])
            self.recording.replay()
            logits = self.recording.logits
        self.positions.add_(1).clamp_(max=self.last)  # a row that is done runs on until all are
        return logits

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        # of a single row torch.compile makes kernels of attention's formula; on an H100 they take 0.85 ms a token of
        # 7B, the fused kernel of a step that is not compiled 0.57, but no GPU has timed a compiled step with that one
        formula = self.compiled and positions.is_cuda and len(tokens) == 1
        with sdpa_kernel(SDPBackend.MATH) if formula else nullcontext():
            embedded = self.language_model.embed(tokens)
            hidden = self.language_model(embedded, positions, self.cache, compiled=self.compiled)
        return self.language_model.logits(hidden[:, 0])

    def _recorded(self, recordings: dict) -> Recording:
        """The recording of such a step on this memory. A new one is made if there is none, or the weights have moved.

        Recording writes keys and values at the first new positions, where the first step writes again.
        """
        key = (self.cache.size, self.compiled)
        weights = [place for weight in self.language_model.parameters() for place in _places(weight)]
        if key not in recordings or recordings[key].weights != weights:
            recordings[key] = Recording(self._step, self.positions, weights)
        return recordings[key]


def _watched(language_model: nn.Module) -> bool:
    """Whether anybody looks at what passes through its modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in language_model.modules())


def _places(weight: Tensor) -> list[int]:
    """Where a weight's numbers lie in memory; those of a quantised one lie in several tensors."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight.data_ptr()]
    return [place for name in weight.__tensor_flatten__()[0] for place in _places(getattr(weight, name))]
