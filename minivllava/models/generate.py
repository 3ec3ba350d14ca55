"""Answering: prefill the prompts once, then one token at a time from the KV cache."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minivllava.models.language import KVCache, LanguageModel


@torch.inference_mode()
def generate(
    language_model: LanguageModel,
    prompts: Tensor,
    lengths: Tensor,
    stop: Sequence[int],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    on_token: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Continues a batch of prompts of different lengths until each emits a token of `stop`.

    prompts (b, s, d): embeddings, right-padded; lengths (b,): real tokens of each. temperature 0 is greedy.
    Returns the new ids of each row, without the stop token. `on_token` sees each step's ids (b,), -1 for
    rows that are done. Rows never exceed the model's context.
    """
    batch, width = prompts.shape[:2]
    room = min(max_new_tokens, language_model.config.context - int(lengths.max()))
    cache = KVCache.empty(language_model.config, batch, width + max(room, 0), like=prompts)
    hidden = language_model(prompts, cache=cache)
    last = hidden[torch.arange(batch, device=hidden.device), lengths - 1]
    answers: list[list[int]] = [[] for _ in range(batch)]
    running = [True] * batch
    for step in range(room):
        tokens = choose(language_model.logits(last), temperature, top_p, generator)
        ids = tokens.tolist()
        running = [alive and token not in stop for alive, token in zip(running, ids, strict=True)]
        for answer, token, alive in zip(answers, ids, running, strict=True):
            if alive:
                answer.append(token)
        if on_token is not None:
            on_token([token if alive else -1 for token, alive in zip(ids, running, strict=True)])
        if not any(running) or step == room - 1:
            break
        # each row writes after its own last token, over what padding left there
        positions = (lengths + step)[:, None]
        last = language_model(language_model.embed(tokens[:, None]), positions, cache)[:, 0]
    return answers


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
