"""Conversations to token ids and labels: chat templates, visual placeholders, and which tokens are learned.

The original code sets placeholders and swaps blocks of features in later: in 2023 one for each visual, since 2024
one for each image or frame. Here each visual is a run of -200s, one per visual token, from the start: a
sequence has its final length once it is encoded, and splicing is a masked assignment.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from minivllava.data.chat_template import chat_pieces
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import ContextLengthError, DataError, check_choice

IGNORE = -100  # label of a token that is not learned
VISUAL = -200  # input id in the place of a visual token
PLACEHOLDERS = {"<image>": "image", "<video>": "video"}


@dataclass(frozen=True)
class Template:
    """How turns become text (the original's `SeparatorStyle.TWO`).

    An `end` of "</s>" stands for the tokenizer's end-of-sequence token, whatever that is called.
    """

    system: str = ""
    user: str = "USER: "
    assistant: str = "ASSISTANT:"
    after_user: str = " "
    end: str = "</s>"
    instructions: bool = True  # False: only placeholders and answers remain (template `plain`)
    own: bool = False  # True: the chat template that comes with the tokenizer, in place of all the above


_SYSTEM = "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, \
detailed, and polite answers to the {1} questions. "
TEMPLATES = {
    "v1": Template(system=_SYSTEM.format("user", "user's")),
    "llava_v1": Template(system=_SYSTEM.format("human", "human's")),
    "short": Template(),  # v1 without the system sentence, as the Hugging Face port prompts
    "plain": Template(user="", assistant="", after_user="", end="\n", instructions=False),
    "chat": Template(own=True),
}


def template(name: str) -> Template:
    """The template called `name`. Raises ConfigError that lists the names there are."""
    check_choice("conversation template", name, TEMPLATES)
    return TEMPLATES[name]


def placeholders(text: str) -> list[str]:
    """The kinds of the visuals that a text refers to, in order: "image", "video"."""
    return [PLACEHOLDERS[piece] for piece in _split(text) if piece in PLACEHOLDERS]


def visual_kinds(turns: Iterable[dict]) -> list[str]:
    """The kinds of the visuals that a conversation refers to, in order."""
    return [kind for turn in turns for kind in placeholders(turn["value"])]


def check_turns(turns: Sequence[dict], where: str, words: bool = False):
    """Raises DataError unless turns alternate, a question first, and only questions hold placeholders (`words`: which
    are words here). `where` names the record in messages.
    """
    for number, turn in enumerate(turns, start=1):
        if turn["from"] != ("gpt", "human")[number % 2]:
            raise DataError(
                f"{where}: turn {number} is from {turn['from']!r}; turns must alternate human, gpt, human, ..."
            )
        if turn["from"] == "gpt" and not words and placeholders(turn["value"]):
            raise DataError(f"{where}: turn {number}, an answer, holds a placeholder; only questions may.")


def encode_conversation(
    turns: Sequence[dict],
    tokenizer: Tokenizer,
    template: Template,
    visual_tokens: Sequence[int] = (),
    context: int | None = None,
    where: str = "The conversation",
    ids_of_placeholders: dict[str, int] | None = None,
    words: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation in LLaVA's format (a list of `{"from", "value"}`).

    visual_tokens: how many tokens each placeholder stands for, in order. The answers and the end-of-turn
    after each are learned; everything else has the label -100. A conversation that ends with a
    human turn is a prompt: it closes with "ASSISTANT:", and nothing is learned from it. What looks like a
    special token in a turn is ordinary text. ids_of_placeholders: those of the port, where a placeholder is a
    special token, which some tokenizers mind when they read the text behind it; the original encodes that text alone.
    words: placeholders are words, as in the original's records without files.

    Raises DataError when placeholders and visuals disagree or turns do not alternate, ContextLengthError
    when the result is longer than `context`. `where` names the record in messages.
    """
    check_turns(turns, where, words)
    visual = sum(visual_tokens)
    if context is not None and visual > context:  # before as many ids are made
        raise ContextLengthError(
            f"{where} takes {visual} visual tokens, and the language model's context holds {context}: use fewer frames "
            "or images."
        )
    counts = list(visual_tokens)
    begins = tokenizer.bos is not None and not template.own  # a chat template writes its own beginning
    ids, labels = ([tokenizer.bos], [IGNORE]) if begins else ([], [])
    before = None
    kinds = () if words else tuple(PLACEHOLDERS)
    atoms = _atoms(turns, tokenizer, template, where, kinds)
    for is_text, group in groupby(atoms, lambda atom: isinstance(atom[0], str) and atom[0] not in kinds):
        run = list(group)
        encoded = tokenizer.encode_run(run, before) if is_text else [_place(*atom, counts, where) for atom in run]
        last = run[-1][0]
        before = None if is_text else last if isinstance(last, int) else (ids_of_placeholders or {}).get(last)
        for new, learned in encoded:
            ids += new
            labels += new if learned else [IGNORE] * len(new)
    if counts:
        raise DataError(
            f"{where}: {len(counts)} file(s) without a placeholder; write <image> or <video> in a human turn for each."
        )
    if context is not None and len(ids) > context:
        raise ContextLengthError(
            f"{where} takes {len(ids)} tokens, {visual} of them visual, and the language model's "
            f"context holds {context}: use fewer frames, images or turns."
        )
    return ids, labels


def _atoms(
    turns, tokenizer: Tokenizer, template: Template, where: str, kinds: tuple[str, ...]
) -> Iterator[tuple[str | int, bool]]:
    """Texts, placeholders (`kinds`) and ids of special tokens in order, each with: is it learned?"""
    pieces = chat_pieces(turns, tokenizer, where) if template.own else _pieces(turns, tokenizer, template)
    for piece, learned in pieces:
        for atom in _split(piece) if isinstance(piece, str) and kinds else [piece]:
            if atom != "":
                yield atom, learned


def _place(atom: str | int, learned: bool, counts: list[int], where: str) -> tuple[list[int], bool]:
    """The ids of a special token, or of a placeholder, which uses up the first of `counts`."""
    if isinstance(atom, int):
        return [atom], learned
    if not counts:
        raise DataError(f"{where}: a placeholder {atom} has no file; name one, or take the placeholder out.")
    return [VISUAL] * counts.pop(0), False


def _pieces(turns, tokenizer: Tokenizer, template: Template) -> Iterator[tuple[str | int, bool]]:
    """What `_atoms` gives, placeholders still in their texts."""
    yield template.system, False
    for turn in turns:
        value = turn["value"]
        if turn["from"] == "human":
            if not template.instructions:  # the original's `plain` keeps the placeholder alone
                value = "".join(piece for piece in _split(value) if piece in PLACEHOLDERS)
            yield template.user + value + template.after_user + template.assistant, False
        else:
            value = (" " if template.assistant else "") + value
            yield (value, True) if template.end == "</s>" else (value + template.end, True)
            if template.end == "</s>":
                yield tokenizer.eos, True


def _split(text: str) -> list[str]:
    """Text cut before and after each placeholder, empty pieces left out."""
    return [piece for piece in re.split(f"({'|'.join(PLACEHOLDERS)})", text) if piece]
