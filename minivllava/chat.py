"""Asking a model about files: from a question and paths to a streamed answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minivllava.data.conversation import encode_conversation, placeholders, template
from minivllava.data.dataset import load_pixels
from minivllava.data.media import media_kind
from minivllava.data.tokenizer import pad_rows
from minivllava.errors import CheckpointError, DataError
from minivllava.models.generate import generate
from minivllava.models.vllava import VideoLLaVA


def chat(
    model: VideoLLaVA,
    question: str,
    images: Sequence[str | Path] = (),
    videos: Sequence[str | Path] = (),
    history: Sequence[tuple[str, str]] = (),
    frames: int | None = None,
    on_text: Callable[[str], None] | None = None,
    **sampling,
) -> str:
    """The model's answer to a question about pictures and clips.

    images, videos: paths. Where no turn names them by <image> and <video>, they stand before the first
    question, clips first, as the original does. history: earlier (question, answer) pairs of the same
    conversation. frames: how many of a clip the model sees (default: the config's 8). on_text receives the
    answer piece by piece. sampling: `temperature` (0: greedy), `top_p`, `max_new_tokens`, `generator`.

    Raises MediaError for a file that cannot be read, DataError when placeholders and files disagree,
    ContextLengthError when all of it is too long, CheckpointError for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise CheckpointError("The model has no tokenizer, so it reads no words: copy tokenizer files into its folder.")
    turns = [turn for asked, answered in history for turn in (("human", asked), ("gpt", answered))]
    turns = [{"from": speaker, "value": value} for speaker, value in (*turns, ("human", question))]
    if not any(placeholders(turn["value"]) for turn in turns):
        markers = "<video>" * len(videos) + "<image>" * len(images)
        turns[0]["value"] = f"{markers}\n{turns[0]['value']}" if markers else turns[0]["value"]
    files = {"image": iter(images), "video": iter(videos)}
    kinds = [kind for turn in turns for kind in placeholders(turn["value"])]
    paths = [next(files[kind], None) for kind in kinds]
    leftover = [path for rest in files.values() for path in rest]
    if None in paths:
        raise DataError(f"A <{kinds[paths.index(None)]}> in the text has no file: give one, or take it out.")
    if leftover:
        raise DataError(f"{leftover[0]} has no placeholder: write <image> or <video> for each file, or for none.")
    frames = frames or model.config.video.frames
    counts = [model.config.visual_tokens(kind, frames) for kind in kinds]
    ids, _ = encode_conversation(
        turns, model.tokenizer, template(model.config.template), counts, model.config.language.context
    )
    visuals = [load_pixels(str(path), kind, model.config, frames) for path, kind in zip(paths, kinds, strict=True)]
    streamer = Streamer(model, on_text) if on_text else None
    (answer,) = answer_prompts(model, [ids], [visuals], on_token=streamer, **sampling)
    return answer


def by_kind(files: Iterable[str | Path]) -> tuple[list, list]:
    """Paths sorted into (images, videos) by what they are. Raises MediaError for neither."""
    sorted_files: dict[str, list] = {"image": [], "video": []}
    for file in files:
        sorted_files[media_kind(file)].append(file)
    return sorted_files["image"], sorted_files["video"]


@torch.inference_mode()
def answer_prompts(
    model: VideoLLaVA,
    prompts: Sequence[Sequence[int]],
    visuals: Sequence[Sequence[Tensor]],
    max_new_tokens: int = 128,
    **options,
) -> list[str]:
    """Answers a batch of encoded prompts of any lengths, each with its visuals. See `generate` for options."""
    ids = pad_rows([list(prompt) for prompt in prompts], 0).to(model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    embeddings = model.embed(ids, [v.to(model.device) for row in visuals for v in row])
    answers = generate(
        model.language_model, embeddings, lengths, stop=model.stop_tokens,
        max_new_tokens=max_new_tokens, **options,
    )  # fmt: skip
    return [model.tokenizer.decode(answer).strip() for answer in answers]


class Streamer:
    """Turns one row's tokens into pieces of text, holding back bytes that are not yet whole characters."""

    def __init__(self, model: VideoLLaVA, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = model.tokenizer, on_text
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: list[int]):
        if tokens[0] >= 0:
            self.ids.append(tokens[0])
        text = self.tokenizer.decode(self.ids).lstrip()
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text
