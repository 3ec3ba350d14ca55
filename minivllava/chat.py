"""Asking a model about files: from a question and paths to a streamed answer.

chat           one question, with or without what was said before
chat_batch     several conversations at once
Conversation   one that goes on: it keeps what it has read, so that each turn costs only what is new
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minivllava.data.conversation import VISUAL, placeholders, visual_kinds
from minivllava.data.dataset import load_pixels
from minivllava.data.media import media_kind
from minivllava.data.tokenizer import pad_rows
from minivllava.errors import ConfigError, DataError
from minivllava.models.generate import Sampling, generate
from minivllava.models.vllava import VideoLLaVA

File = str | Path


def chat(
    model: VideoLLaVA,
    question: str,
    images: Sequence[File] = (),
    videos: Sequence[File] = (),
    history: Sequence[tuple[str, str]] = (),
    frames: int | None = None,
    on_text: Callable[[str], None] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    compiled: bool = False,
) -> str:
    """The model's answer to a question about images and clips.

    images, videos: paths, or one path. Where no turn names them by <image> and <video>, they stand before the first
    question, clips first, as the original does. history: earlier (question, answer) pairs of the same
    conversation. frames: how many of a clip the model sees (default: the config's 8). on_text receives the
    answer piece by piece. max_new_tokens, temperature (0: greedy), top_p, generator: as in `Sampling`. compiled:
    torch.compile, for long answers and many of them.

    Raises MediaError for a file that cannot be read, DataError when placeholders and files disagree,
    ContextLengthError when all of it is too long or leaves no room for an answer, CheckpointError for a
    model without a tokenizer, ConfigError for impossible numbers.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, generator)
    ids, visuals = _encode(model, question, images, videos, history, frames)
    streamer = Streamer(model, on_text)
    (answer,) = answer_prompts(model, [ids], [visuals], sampling, streamer, compiled)
    streamer.finish()
    return answer


def chat_batch(
    model: VideoLLaVA,
    questions: Sequence[str],
    images: Sequence[Sequence[File]] | None = None,
    videos: Sequence[Sequence[File]] | None = None,
    histories: Sequence[Sequence[tuple[str, str]]] | None = None,
    sampling: Sampling = Sampling(),
) -> list[str]:
    """The answers to several conversations' questions, computed at once; greedy ones are those of `chat`.

    images, videos, histories: one sequence for each question, as `chat` takes them; left out, there are none.
    Raises what `chat` raises, and ConfigError when there are not as many of them as questions.
    """
    given = {"images": images, "videos": videos, "histories": histories}
    for name, rows in given.items():
        if rows is not None and len(rows) != len(questions):
            raise ConfigError(f"{name}: {len(rows)} for {len(questions)} questions; give a sequence for each, or none.")
    columns = [rows if rows is not None else [()] * len(questions) for rows in given.values()]
    encoded = [_encode(model, *row, frames=None) for row in zip(questions, *columns, strict=True)]
    prompts, visuals = [ids for ids, _ in encoded], [visuals for _, visuals in encoded]
    return answer_prompts(model, prompts, visuals, sampling)


def by_kind(files: Iterable[File]) -> tuple[list, list]:
    """Paths sorted into (images, videos) by what they are. Raises MediaError for neither."""
    sorted_files: dict[str, list] = {"image": [], "video": []}
    for file in files:
        sorted_files[media_kind(file)].append(file)
    return sorted_files["image"], sorted_files["video"]


def _encode(model: VideoLLaVA, question, images, videos, history, frames: int | None) -> tuple[list[int], list[Tensor]]:
    """A conversation's ids, and the pixels of its files in the placeholders' order."""
    images, videos = _listed(images), _listed(videos)
    turns = _turns(history, _not_empty(question))
    if not visual_kinds(turns):
        turns[0]["value"] = _with_markers(turns[0]["value"], images, videos)
    kinds = visual_kinds(turns)
    paths = _in_order(kinds, images, videos)
    frames = model.config.video.frames if frames is None else frames
    return _ids(model, turns, frames, paths), [
        load_pixels(str(path), kind, model.config, frames) for path, kind in zip(paths, kinds, strict=True)
    ]


def _not_empty(question: str) -> str:
    if not question.strip():
        raise DataError("The question is empty: ask something about the files, or say something.")
    return question


def _listed(files: File | Iterable[File]) -> list[File]:
    return [files] if isinstance(files, File) else list(files)


def _turns(history: Iterable[tuple[str, str]], question: str) -> list[dict]:
    # a placeholder that the model wrote itself stands for no file: it goes on as a word
    words = [(asked, re.sub(r"<(image|video)>", r"\1", answered)) for asked, answered in history]
    said = [turn for asked, answered in words for turn in (("human", asked), ("gpt", answered))]
    return [{"from": speaker, "value": value} for speaker, value in (*said, ("human", question))]


def _with_markers(question: str, images: Sequence[File], videos: Sequence[File]) -> str:
    """The question with a placeholder for each file on a line before it, clips first."""
    markers = "<video>" * len(videos) + "<image>" * len(images)
    return f"{markers}\n{question}" if markers else question


def _in_order(kinds: Sequence[str], images: Sequence[File], videos: Sequence[File]) -> list[File]:
    """The files in the order of their placeholders. Raises DataError when there is one too many of either."""
    files = {"image": iter(images), "video": iter(videos)}
    paths = [next(files[kind], None) for kind in kinds]
    if None in paths:
        raise DataError(f"A <{kinds[paths.index(None)]}> in the text has no file: give one, or take it out.")
    for path in (path for rest in files.values() for path in rest):
        raise DataError(f"{path} has no placeholder: write <image> or <video> for each file, or for none.")
    return paths


def _ids(model: VideoLLaVA, turns: Sequence[dict], frames: int, paths: Sequence[File]) -> list[int]:
    where = " about ".join(filter(None, ("The conversation", ", ".join(map(str, paths)))))
    return model.encode(turns, frames, where)[0]


@torch.inference_mode()
def answer_prompts(
    model: VideoLLaVA,
    prompts: Sequence[Sequence[int]],
    visuals: Sequence[Sequence[Tensor]],
    sampling: Sampling = Sampling(),
    on_token: Callable[[list[int]], None] | None = None,
    compiled: bool = False,
) -> list[str]:
    """Answers a batch of encoded prompts of any lengths, each with its visuals. on_token, compiled: see `generate`."""
    if not prompts:
        return []
    ids = pad_rows([list(prompt) for prompt in prompts], 0).to(model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    embeddings = model.embed(ids, [v.to(model.device) for row in visuals for v in row])
    answers = generate(
        model.language_model, embeddings, lengths, model.stop_tokens, sampling, on_token, compiled=compiled
    )
    return [model.tokenizer.decode(answer).strip() for answer in answers]


class _Seen(NamedTuple):
    """An image or clip of a conversation."""

    number: int  # of no other in this conversation
    path: File
    kind: str
    features: Tensor  # (n, d), of the encoder


class Conversation:
    """A conversation about images and clips that goes on.

    Its keys and values stay in a cache: a further turn reads only what the model has not read yet, and a file is
    encoded once. The answers are those that `chat` gives for the same history. What fails, or is interrupted,
    leaves the conversation as it was before.

    frames, compiled: as `chat` takes them, for all turns; sampling: for turns that bring none of their own.
    """

    def __init__(
        self, model: VideoLLaVA, frames: int | None = None, sampling: Sampling = Sampling(), compiled: bool = False
    ):
        self.model, self.sampling, self.compiled = model, sampling, compiled
        self.frames = model.config.video.frames if frames is None else frames
        self._numbers = count(1)
        self.reset()

    def reset(self):
        """Forgets all that was said and seen."""
        self.history: list[tuple[str, str]] = []  # (question, answer), with the files' placeholders
        self._seen: list[_Seen] = []
        self._cache = None
        self._read: list[int] = []  # what the cache holds: ids, and in place of -200s which visual it is

    def ask(
        self, question: str, images: Sequence[File] = (), videos: Sequence[File] = (),
        on_text: Callable[[str], None] | None = None, sampling: Sampling | None = None,
    ) -> str:  # fmt: skip
        """The answer to the next question, about files shown now or before.

        Files stand before the question, clips first, unless it says by <image> and <video> where. Raises as `chat`.
        """
        images, videos = _listed(images), _listed(videos)
        if not placeholders(_not_empty(question)):
            question = _with_markers(question, images, videos)
        paths = [s.path for s in self._seen] + _in_order(placeholders(question), images, videos)
        ids = _ids(self.model, _turns(self.history, question), self.frames, paths)
        seen = self._seen + self._see(question, images, videos)
        streamer = Streamer(self.model, on_text)
        made = self._continue(ids, seen, sampling or self.sampling, streamer)
        streamer.finish()
        answer = self.model.tokenizer.decode(made).strip()
        self.history.append((question, answer))
        self._seen = seen
        return answer

    @torch.inference_mode()
    def _see(self, question: str, images: Sequence[File], videos: Sequence[File]) -> list[_Seen]:
        """The files that a question brings, encoded."""
        kinds = placeholders(question)
        found = []
        for path, kind in zip(_in_order(kinds, images, videos), kinds, strict=True):
            pixels = load_pixels(str(path), kind, self.model.config, self.frames)
            features = self.model.features(pixels[None])[0]
            found.append(_Seen(next(self._numbers), path, kind, features))
        return found

    @torch.inference_mode()
    def _continue(self, ids: list[int], seen: list[_Seen], sampling: Sampling, on_token: Callable) -> list[int]:
        """The new tokens after a prompt, of which only what differs from what the cache holds is read."""
        language_model, device = self.model.language_model, self.model.device
        counts = [self.model.config.visual_tokens(s.kind, self.frames) for s in seen]
        marks = (VISUAL - s.number for s, tokens in zip(seen, counts, strict=True) for _ in range(tokens))
        keys = [next(marks) if token == VISUAL else token for token in ids]
        needed = min(len(ids) + sampling.max_new_tokens, language_model.config.context)
        enough = self._cache is not None and self._cache.size >= needed
        cached_tokens = _shared(keys, self._read) if enough else 0
        new = set(keys[cached_tokens:])
        features = [s.features for s in seen if VISUAL - s.number in new]
        embeddings = self.model.embed(torch.tensor([ids[cached_tokens:]], device=device), features)
        if not enough:  # twice what is needed, for the turns that follow
            self._cache = language_model.new_cache(1, min(2 * needed, language_model.config.context), like=embeddings)
        self._read = keys[:cached_tokens]  # from here on overwritten
        lengths = torch.tensor([len(ids) - cached_tokens], device=device)
        (made,) = generate(
            language_model, embeddings, lengths, self.model.stop_tokens, sampling, on_token,
            self._cache, cached_tokens, self.compiled,
        )  # fmt: skip
        self._read = keys + made[:-1]  # the last token may not have been read
        return made


def _shared(keys: list[int], read: list[int]) -> int:
    """How many of a prompt's tokens are what was read before: not all, since the last one gives the first logits,
    and a visual as a whole or not at all."""
    same = zip(keys[:-1], read, strict=False)
    length = next((i for i, (new, old) in enumerate(same) if new != old), min(len(keys) - 1, len(read)))
    while length and keys[length] < 0 and keys[length] == keys[length - 1]:
        length -= 1
    return length


class Streamer:
    """Turns one row's tokens into pieces of text, holding back bytes that are not yet whole characters.

    on_text: may be None, then nothing happens.
    """

    def __init__(self, model: VideoLLaVA, on_text: Callable[[str], None] | None):
        self.tokenizer, self.on_text = model.tokenizer, on_text
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: list[int]):
        if self.on_text is not None and tokens[0] >= 0:
            self.ids.append(tokens[0])
            self._show(whole=False)

    def finish(self):
        """Shows what was held back, if the answer ends with it."""
        if self.on_text is not None:
            self._show(whole=True)

    def _show(self, whole: bool):
        text = self.tokenizer.decode(self.ids).lstrip()
        if len(text) > len(self.shown) and (whole or not text.endswith("\N{REPLACEMENT CHARACTER}")):
            self.on_text(text[len(self.shown) :])
            self.shown = text
