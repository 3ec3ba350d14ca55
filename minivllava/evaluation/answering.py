"""Answers to batches of questions about images and clips, which may be files or bytes."""

import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minivllava.chat import answer_prompts
from minivllava.config import ModelConfig
from minivllava.data.conversation import placeholders
from minivllava.data.dataset import load_pixels
from minivllava.models.generate import Sampling
from minivllava.models.vllava import VideoLLaVA

KEPT = 32  # images and clips whose features are remembered: benchmarks ask several questions about each


class Asked(NamedTuple):
    """A question with its images and clips: (kind, file or the bytes of an image), in the placeholders' order.

    Without placeholders in the text they stand before it, on a line of their own.
    """

    text: str
    visuals: Sequence[tuple[str, str | Path | bytes]] = ()


class Answerer:
    """Answers batches of questions with one model; remembers the features of the files seen last.

    template_name and config: for questions that are put, or images that are cut, otherwise than the model's own
    config says. sampling: for batches that bring none of their own; draws depend on `seed` and the batch's texts, not
    on its generator.
    """

    def __init__(
        self, model: VideoLLaVA, template_name: str | None = None, config: ModelConfig | None = None, seed: int = 0,
        sampling: Sampling = Sampling(),
    ):  # fmt: skip
        self.model, self.config, self.seed, self.sampling = model, config or model.config, seed, sampling
        self.template_name = template_name
        self.features: OrderedDict[tuple, Tensor] = OrderedDict()

    def __call__(self, questions: Sequence[Asked], sampling: Sampling | None = None) -> list[str]:
        """The answer to each question. Raises MediaError, DataError, ContextLengthError as `chat` does."""
        prompts, visuals = [], []
        for question in questions:
            text = question.text
            if not placeholders(text) and question.visuals:
                text = "".join(f"<{kind}>" for kind, _ in question.visuals) + "\n" + text
            turns, where = [{"from": "human", "value": text}], f"The question {question.text[:60]!r}"
            prompts.append(self.model.encode(turns, where=where, template_name=self.template_name)[0])
            visuals.append([self._features(kind, source) for kind, source in question.visuals])
        seed = zlib.crc32("\0".join(question.text for question in questions).encode(), self.seed)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        sampling = replace(sampling or self.sampling, generator=generator)
        return answer_prompts(self.model, prompts, visuals, sampling)

    @torch.inference_mode()
    def _features(self, kind: str, source: str | Path | bytes) -> Tensor:
        name = (kind, zlib.crc32(source), len(source)) if isinstance(source, bytes) else (kind, str(source))
        if name in self.features:
            self.features.move_to_end(name)
            return self.features[name]
        with _as_file(source) as file:
            pixels = load_pixels(file, kind, self.config, self.config.video.frames)
        self.features[name] = self.model.features(pixels[None])[0]
        if len(self.features) > KEPT:
            self.features.popitem(last=False)
        return self.features[name]


@contextmanager
def _as_file(source: str | Path | bytes) -> Iterator[str]:
    """A path to an image that may only be bytes; Pillow goes by the content and ignores the suffix."""
    if not isinstance(source, bytes):
        yield str(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        path.write_bytes(source)
        yield str(path)
