"""Answering: prefill the prompts once, then one token at a time from the KV cache."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllava.errors import CheckpointError, ConfigError, ContextLengthError, short_reason
from minivllava.fields import check_range, check_types
from minivllava.models.decoding import DecodingStep
from minivllava.models.kv_cache import KVCache, keep, new_or_kept
from minivllava.models.language import LanguageModel

AHEAD = {"cuda": 8}  # steps whose tokens are read together: each reading makes the CPU wait for the GPU


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen, and how many it has at most. Raises ConfigError for impossible numbers."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0, or below a millionth: the likeliest token each time (greedy)
    top_p: float = 1.0  # draws among the likeliest tokens up to this share
    generator: torch.Generator | None = None  # on the model's device; None: torch's global one

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "max_new_tokens")
        check_range(self, 0, math.inf, "temperature")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: use more than 0 and at most 1, which draws among all tokens.")


@torch.inference_mode()
def generate(
    language_model: LanguageModel,
    prompts: Tensor,
    lengths: Tensor,
    stop: Collection[int],
    sampling: Sampling = Sampling(),
    on_token: Callable[[list[int]], None] | None = None,
    cache: KVCache | None = None,
    cached_tokens: int = 0,
    compiled: bool = False,
) -> list[list[int]]:
    """Continues a batch of prompts of different lengths until each emits a token of `stop`.

    prompts (b, s, d): embeddings, right-padded; lengths (b,): real tokens of each. Returns the new ids of each row,
    without the stop token. A row ends when it has `max_new_tokens` or fills the context; what it answers does not
    depend on the other rows. `on_token` sees each step's ids (b,), -1 for rows that are done. cache: of earlier turns,
    whose first `cached_tokens` positions the prompts go on from; it must have room for prompts, padding included, and
    answers. compiled: torch.compile, see `decoding`.

    Raises ContextLengthError where a prompt leaves no room for an answer, ConfigError where torch.compile fails,
    CheckpointError where the logits are no numbers.
    """
    if not len(prompts):
        return []
    batch, length = prompts.shape[:2]
    starts = [cached_tokens + tokens for tokens in lengths.tolist()]  # position of each row's first new token
    context = language_model.config.context
    if max(starts) >= context:
        raise ContextLengthError(
            f"The prompt takes {max(starts)} tokens and the language model's context holds {context}: no room is left "
            "for an answer; use fewer frames, images or turns."
        )
    limits = [min(sampling.max_new_tokens, context - start) for start in starts]  # new tokens of each row, at most
    end = max(start + limit for start, limit in zip(starts, limits, strict=True))

    given = cache is not None
    if not given:
        cache = new_or_kept(language_model, prompts, max(length, end))
    positions = None
    if cached_tokens:
        positions = (cached_tokens + torch.arange(length, device=prompts.device)).expand(batch, -1)
    try:
        hidden = language_model(prompts, positions, cache, compiled=compiled)
    except RuntimeError as error:
        if compiled:
            _check_compiler(error)
        raise
    lengths = lengths.to(prompts.device)
    logits = language_model.logits(hidden[torch.arange(batch, device=prompts.device), lengths - 1])

    step = DecodingStep(language_model, cache, (cached_tokens + lengths)[:, None], end, max(limits), compiled)
    answers, wrong = _Answers(limits, stop, on_token), logits.isnan().any()
    for ids in _tokens(logits, step, sampling, max(limits)):
        if not answers.begun and wrong:  # asked when the first tokens are read, which waits for the GPU anyway
            raise CheckpointError(
                "The model's logits are no numbers: its weights are broken (copy the checkpoint again) or too large "
                "for this dtype (load it in float32 or bfloat16)."
            )
        answers.add(ids)
        if answers.finished:
            break
    if not given:
        keep(language_model, cache)
    return answers.rows


def _check_compiler(error: RuntimeError):
    """Raises ConfigError if an error is torch.compile's, most often for want of a C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException

    if isinstance(error, TorchDynamoException):
        reason = short_reason(error).partition(" Set TORCH")[0]
        raise ConfigError(f"compiled: torch.compile cannot be used here ({reason}): leave it out.") from error


def _tokens(logits: Tensor, step: DecodingStep, sampling: Sampling, count: int) -> Iterator[list[int]]:
    """Each step's new ids (b,), `count` times. logits (b, v): of the first.

    Ids are read from a GPU for several steps at a time, which may then be a few more than are wanted.
    """
    ahead, unread = AHEAD.get(logits.device.type, 1), []
    for number in range(1, count + 1):
        tokens = sample(logits, sampling)
        unread.append(tokens)
        if len(unread) == ahead or number == count:
            yield from torch.stack(unread).tolist()
            unread.clear()
        if number < count:
            logits = step(tokens)


class _Answers:
    """The new tokens of each row so far, and how many more it may have: none once it has stopped."""

    def __init__(self, limits: list[int], stop: Collection[int], on_token: Callable[[list[int]], None] | None):
        self.left, self.stop, self.on_token = list(limits), frozenset(stop), on_token
        self.rows: list[list[int]] = [[] for _ in limits]

    def add(self, ids: list[int]):
        """Adds one step's tokens (b,) to the rows that have not ended."""
        shown = [-1] * len(ids)
        for row, token in enumerate(ids):
            if self.left[row] and token in self.stop:
                self.left[row] = 0
            elif self.left[row]:
                self.left[row] -= 1
                self.rows[row].append(token)
                shown[row] = token
        if self.on_token is not None:
            self.on_token(shown)

    @property
    def begun(self) -> bool:
        return any(self.rows)

    @property
    def finished(self) -> bool:
        return not any(self.left)


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row, (b, v) -> (b,): the likeliest, or a draw from the smallest set of tokens
    whose probabilities reach `top_p` (nucleus sampling)."""
    if sampling.temperature < 1e-6:
        return logits.argmax(-1)
    probabilities, tokens = (logits.float() / sampling.temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    before[:, 0] = -1.0  # the likeliest token always stays
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    draw = torch.multinomial(probabilities, 1, generator=sampling.generator)
    return tokens.gather(-1, draw)[:, 0]
