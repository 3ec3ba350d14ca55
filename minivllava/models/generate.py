"""Answering: prefill the prompts once, then one token at a time from the KV cache."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from minivllava.errors import ConfigError, ContextLengthError
from minivllava.models.decoding import Decoder
from minivllava.models.kv_cache import KVCache, keep, new_or_kept
from minivllava.models.language import LanguageModel

AHEAD = {"cuda": 8}  # tokens between two looks at what was generated: each look makes the GPU wait for the CPU


@torch.inference_mode()
def generate(
    language_model: LanguageModel,
    prompts: Tensor,
    lengths: Tensor,
    stop: Collection[int],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    on_token: Callable[[list[int]], None] | None = None,
    cache: KVCache | None = None,
    known: int = 0,
    compiled: bool = False,
) -> list[list[int]]:
    """Continues a batch of prompts of different lengths until each emits a token of `stop`.

    prompts (b, s, d): embeddings, right-padded; lengths (b,): real tokens of each. temperature 0 is greedy.
    Returns the new ids of each row, without the stop token. A row ends when it has `max_new_tokens` or fills the
    context; what it answers does not depend on the other rows. `on_token` sees each step's ids (b,), -1 for rows
    that are done. cache: of earlier turns, whose first `known` positions the prompts go on from; it must have room
    for prompts, padding included, and answers. compiled: torch.compile, see `decoding`.

    Raises ContextLengthError where a prompt leaves no room for an answer, ConfigError for max_new_tokens < 1,
    a temperature below 0 and a top_p outside 0 to 1.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens {max_new_tokens}: an answer needs room for at least 1 token.")
    if not temperature >= 0:
        raise ConfigError(f"temperature {temperature}: use 0 for the likeliest tokens, or more to draw among them.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p}: use more than 0 and at most 1, which draws among all tokens.")
    if not len(prompts):
        return []
    ends = [known + length for length in lengths.tolist()]
    context = language_model.config.context
    if max(ends) >= context:
        raise ContextLengthError(
            f"The prompt takes {max(ends)} tokens and the language model's context holds {context}: no room is left "
            "for an answer; use fewer frames, images or turns."
        )
    batch, width = prompts.shape[:2]
    rooms = [min(max_new_tokens, context - end) for end in ends]
    end = max(end + room for end, room in zip(ends, rooms, strict=True))
    own = cache is None
    if own:
        cache = new_or_kept(language_model, batch, max(width, end), like=prompts)
    positions = None
    if known:
        positions = (known + torch.arange(width, device=prompts.device)).expand(batch, -1)
    hidden = language_model(prompts, positions, cache, compiled=compiled)
    lengths = lengths.to(prompts.device)
    logits = language_model.logits(hidden[torch.arange(batch, device=prompts.device), lengths - 1])
    decoder = Decoder(language_model, cache, (known + lengths)[:, None], end, max(rooms), compiled)
    rows, unread, ahead = _Rows(rooms, stop, on_token), [], AHEAD.get(prompts.device.type, 1)
    for step in range(1, max(rooms) + 1):
        tokens = choose(logits, temperature, top_p, generator)
        unread.append(tokens)
        if len(unread) == ahead or step == max(rooms):
            if not all(rows.take(ids) for ids in torch.stack(unread).tolist()):
                break
            unread.clear()
        if step < max(rooms):
            logits = decoder(tokens)
    if own:
        keep(language_model, cache)
    return rows.answers


class _Rows:
    """The answers so far, and how many tokens each row may still add."""

    def __init__(self, rooms: list[int], stop: Collection[int], on_token: Callable[[list[int]], None] | None):
        self.rooms, self.stop, self.on_token = list(rooms), frozenset(stop), on_token
        self.answers: list[list[int]] = [[] for _ in rooms]

    def take(self, ids: list[int]) -> bool:
        """Adds a step's tokens (b,) to the rows that run. Returns whether any still does."""
        shown = [-1] * len(ids)
        for row, token in enumerate(ids):
            if self.rooms[row] and token in self.stop:
                self.rooms[row] = 0
            elif self.rooms[row]:
                self.rooms[row] -= 1
                self.answers[row].append(token)
                shown[row] = token
        if self.on_token is not None:
            self.on_token(shown)
        return any(self.rooms)


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """The next token of each row, (b, v) -> (b,): the likeliest, or a draw from the smallest set of tokens
    whose probabilities reach `top_p` (nucleus sampling)."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, tokens = (logits.float() / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    before[:, 0] = -1.0  # the likeliest token always stays
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    draw = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, draw)[:, 0]
