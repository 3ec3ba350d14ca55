"""Conversations to token ids and labels: chat templates, visual placeholders, and which tokens are learned.

The original code sets one id -200 for each visual and swaps a block of features in later. Here each visual
stands as a run of -200s, one per visual token, from the start: a sequence has its final length once it is
encoded, and splicing is a masked assignment.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import ConfigError, ContextLengthError, DataError

IGNORE = -100  # label of a token that is not learned
VISUAL = -200  # input id where a visual token will stand
PLACEHOLDERS = {"<image>": "image", "<video>": "video"}


@dataclass(frozen=True)
class Template:
    """How turns become text (the original's `SeparatorStyle.TWO`)."""

    system: str = ""
    user: str = "USER: "
    assistant: str = "ASSISTANT:"
    after_user: str = " "
    end: str = "</s>"
    instructions: bool = True  # False: only placeholders and answers remain (template `plain`)


_SYSTEM = "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, \
detailed, and polite answers to the {1} questions. "
TEMPLATES = {
    "v1": Template(system=_SYSTEM.format("user", "user's")),
    "llava_v1": Template(system=_SYSTEM.format("human", "human's")),
    "short": Template(),  # v1 without the system sentence, as the Hugging Face port prompts
    "plain": Template(user="", assistant="", after_user="", end="\n", instructions=False),
}


def template(name: str) -> Template:
    """The template called `name`. Raises ConfigError that lists the names there are."""
    if name not in TEMPLATES:
        raise ConfigError(f"There is no conversation template {name!r}; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def placeholders(text: str) -> list[str]:
    """The kinds of the visuals that a text refers to, in order: "image", "video"."""
    return [PLACEHOLDERS[piece] for piece in _split(text) if piece in PLACEHOLDERS]


def encode_conversation(
    turns: Sequence[dict],
    tokenizer: Tokenizer,
    template: Template,
    visual_tokens: Sequence[int] = (),
    context: int | None = None,
    where: str = "The conversation",
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation in LLaVA's format (a list of `{"from", "value"}`).

    visual_tokens: how many tokens each placeholder stands for, in order. The answers and the end-of-turn
    after each are learned; everything else has the label -100 (PAPER 1.7). A conversation that ends with a
    human turn is a prompt: it closes with "ASSISTANT:", and nothing is learned from it.

    Raises DataError when placeholders and visuals disagree or turns do not alternate, ContextLengthError
    when the result is longer than `context`. `where` names the record in messages.
    """
    ids, labels, counts = [tokenizer.bos], [IGNORE], list(visual_tokens)
    for text, learned in _pieces(turns, template, where):
        for piece in _split(text):
            if piece in PLACEHOLDERS:
                if not counts:
                    raise DataError(
                        f"{where}: a placeholder {piece} has no file; name one, or take the placeholder out."
                    )
                new, keep = [VISUAL] * counts.pop(0), False
            else:
                new, keep = tokenizer.encode(piece), learned
            ids += new
            labels += new if keep else [IGNORE] * len(new)
    if counts:
        raise DataError(
            f"{where}: {len(counts)} file(s) without a placeholder; write <image> or <video> in a human turn for each."
        )
    if context is not None and len(ids) > context:
        raise ContextLengthError(
            f"{where} takes {len(ids)} tokens, {sum(visual_tokens)} of them visual, and the language model's "
            f"context holds {context}: use fewer frames, pictures or turns."
        )
    return ids, labels


def _pieces(turns, template: Template, where: str):
    """(text, is it learned) in order."""
    yield template.system, False
    for number, turn in enumerate(turns):
        speaker, value = turn["from"], turn["value"]
        if speaker != ("human", "gpt")[number % 2]:
            raise DataError(
                f"{where}: turn {number + 1} is from {speaker!r}; turns must alternate human, gpt, human, ..."
            )
        if speaker == "human":
            if not template.instructions:  # the original's `plain` keeps the placeholder alone
                value = "".join(piece for piece in _split(value) if piece in PLACEHOLDERS)
            yield template.user + value + template.after_user + template.assistant, False
        else:
            if placeholders(value):
                raise DataError(f"{where}: turn {number + 1}, an answer, holds a placeholder; only questions may.")
            yield (" " if template.assistant else "") + value + template.end, True


def _split(text: str) -> list[str]:
    """Text cut before and after each placeholder, empty pieces left out."""
    return [piece for piece in re.split(f"({'|'.join(PLACEHOLDERS)})", text) if piece]
