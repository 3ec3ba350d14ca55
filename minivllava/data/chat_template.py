"""The chat template that comes with a tokenizer, taken apart: which of its text is learned.

A chat template is a program (Jinja) that writes a whole conversation as text. Here it writes one whose turns
are marks in place of texts; the template's own text, its special tokens and the places of the turns can then
be told apart whatever the real turns hold.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING

from minivllava.errors import ConfigError, DataError

if TYPE_CHECKING:
    from minivllava.data.tokenizer import Tokenizer

_MARK = re.compile("(\ue000[0-9]+\ue001)")  # from a range of characters that Unicode leaves to private use
_OTHERWISE = "change what is said, or train with another template (--set model.template=v1)"


def chat_pieces(turns: Sequence[dict], tokenizer: "Tokenizer", where: str) -> Iterator[tuple[str | int, bool]]:
    """(text or id of a special token, is it learned?) of a conversation, in order.

    Learned is what the model has to write itself: all that follows the prompt for an answer, up to the token
    that ends the turn. The pieces together are what `apply_chat_template` gives.

    Raises ConfigError when the tokenizer has no chat template or one that cannot be taken apart so, DataError
    when the template refuses the conversation or changes its texts.
    """
    values = [turn["value"] for turn in turns]
    skeleton = _skeleton(tokenizer, len(turns))
    rendered = _render(tokenizer, values, where)
    for texts in (values, [value.strip() for value in values]):  # many templates trim what is said
        pieces = [(_fill(piece, texts) if isinstance(piece, str) else piece, learned) for piece, learned in skeleton]
        if "".join(tokenizer.special(p) if isinstance(p, int) else p for p, _ in pieces) == rendered:
            return iter(pieces)
    raise DataError(f"{where}: the tokenizer's chat template changes the texts of its turns; {_OTHERWISE}.")


def end_of_turn(tokenizer: "Tokenizer") -> int:
    """The id of the special token that ends an answer in the tokenizer's chat template."""
    return next(piece for piece, learned in reversed(_skeleton(tokenizer, 2)) if learned)


@lru_cache(256)
def _skeleton(tokenizer: "Tokenizer", turns: int) -> tuple[tuple[str | int, bool], ...]:
    """The pieces of a conversation of `turns` turns, with a mark in the place of each turn's text.

    Some templates close a prompt with text that they leave out again once the conversation has gone on, as Qwen3's
    does with an empty `<think>` block. It is part of the prompt, so it is never learned.
    """
    if turns != 2:
        _skeleton(tokenizer, 2)  # a template that cannot give one answer is refused whatever the number of turns
    marks = [f"\ue000{number}\ue001" for number in range(turns)]
    whole = _render(tokenizer, marks, "A conversation")
    cuts = set()  # where learned text begins, and where it ends
    specials = "|".join(map(re.escape, tokenizer.specials))
    for number in range(1, turns, 2):
        prompt = _render(tokenizer, marks[:number], "A conversation")
        begin = len(commonprefix([whole, prompt]))
        start = whole.find(marks[number])
        end = re.compile(rf"\s*(?:{specials})").match(whole, start + len(marks[number]))
        shortened = begin < len(prompt) and (number == turns - 1 or marks[number - 1] not in whole[:begin])
        if start < 0 or shortened or whole[begin:start].strip() or not end:
            raise ConfigError(
                "The tokenizer's chat template cannot be used: it does not continue the prompt of an answer with that "
                "answer alone and a special token that ends it. A model has to be trained with another template "
                "(--set model.template=v1)."
            )
        cuts |= {begin, end.end()}
    pieces, learned, place = [], False, 0
    for cut in (*sorted(cuts), len(whole)):
        for text in re.split(f"({specials})", whole[place:cut]):
            pieces += [(tokenizer.specials.get(text, text), learned)] if text else []
        learned, place = not learned, cut
    return tuple(pieces)


def _fill(text: str, values: Sequence[str]) -> str:
    return _MARK.sub(lambda mark: values[int(mark[1][1:-1])], text)


def _render(tokenizer: "Tokenizer", values: Sequence[str], where: str) -> str:
    """A conversation as text; one that ends with a question is followed by the prompt for its answer."""
    roles = [("user", "assistant")[number % 2] for number in range(len(values))]
    messages = [{"role": role, "content": value} for role, value in zip(roles, values, strict=True)]
    try:
        return tokenizer.render(messages, prompt=len(values) % 2 == 1)
    except ConfigError:
        raise
    except Exception as error:  # templates are programs, and raise what they like
        raise DataError(f"{where}: the tokenizer's chat template refuses it ({error}); {_OTHERWISE}.") from error
