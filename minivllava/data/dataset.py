"""Records to training samples: token ids and labels, visuals as pixels or cached features, mixed batches.

records.load_records -> ConversationDataset (a sample of each record) -> collate -> Batch
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivllava.config import ModelConfig, VisionConfig, VisionTowerConfig
from minivllava.data.batching import batched_by_shape
from minivllava.data.conversation import IGNORE, VISUAL, encode_conversation, template, visual_kinds
from minivllava.data.media import read_image, read_video
from minivllava.data.preprocess import preprocess_image, preprocess_video
from minivllava.data.tokenizer import Tokenizer, pad_rows
from minivllava.errors import ContextLengthError, DataError, MediaError


def load_pixels(
    path: str | Path,
    kind: str,
    config: ModelConfig,
    frames: int,
    vision: VisionConfig | VisionTowerConfig | None = None,
) -> Tensor:
    """A file as its encoder wants it: image (c, h, w) or clip (t, c, h, w), float32, normalised.

    kind: "image" or "video". vision: of an encoder that is neither of the config's two.
    """
    vision = vision or config.vision(kind)
    if kind == "image":
        image = read_image(path)
        try:
            return preprocess_image(image, vision.image_size, config.aspect, vision.mean, vision.std, config.antialias)
        except MediaError as error:
            raise MediaError(f"{path}: {error}") from error
    clip = read_video(path, frames, sampling=config.frame_sampling)
    return preprocess_video(clip, vision.image_size, vision.mean, vision.std, config.clip_resize)


def probe_pixels(config: ModelConfig) -> Callable[[str, str], Tensor]:
    """What `check_media` tries of a file: all that a model does with it before its encoder."""
    return lambda path, kind: load_pixels(path, kind, config, config.video.frames)


Load = Callable[[str, str], Tensor]  # (path, "image" or "video") -> pixels or features of a visual


class ConversationDataset(torch.utils.data.Dataset):
    """Encoded records. Item i: dict of `input_ids`, `labels` (lists) and `visuals` (list of tensors).

    load: None for a set whose visuals are never asked for. cut: tokens after which records end, as in the original
    (never before their last visual token); 0: one that is too long for the context is an error.
    """

    def __init__(
        self,
        records,
        tokenizer: Tokenizer,
        config: ModelConfig,
        load: Load | None,
        template_name: str | None = None,
        cut: int = 0,
    ):
        self.load = load
        counts = {kind: config.visual_tokens(kind, config.video.frames) for kind in ("image", "video")}
        chat_template = template(template_name or config.template)
        self.input_ids, self.labels, self.visuals = [], [], []
        for row in records:
            kinds = [] if row["words"] else visual_kinds(row["conversations"])
            ids, labels = encode_conversation(
                row["conversations"], tokenizer, chat_template, [counts[kind] for kind in kinds],
                None if cut else config.language.context, row["where"], config.ids_of_placeholders,
                row["words"],
            )  # fmt: skip
            if cut:
                ids, labels = _cut(ids, labels, cut, row["where"])
            self.input_ids.append(torch.tensor(ids, dtype=torch.int32))
            self.labels.append(torch.tensor(labels, dtype=torch.int32))
            self.visuals.append(list(zip(row["visuals"], kinds, strict=True)))
        if records and not any((labels != IGNORE).any() for labels in self.labels):
            raise DataError(f"{records[0]['where']} and the rest hold no answer to learn: add gpt turns.")

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict:
        visuals = [self.load(path, kind) for path, kind in self.visuals[index]]
        return {"input_ids": self.input_ids[index], "labels": self.labels[index], "visuals": visuals}

    def fingerprint(self) -> str:
        """A hash of what is learned, in its order: ids, labels, names of the files."""
        digest = hashlib.sha256()
        for ids, labels, visuals in zip(self.input_ids, self.labels, self.visuals, strict=True):
            digest.update(ids.numpy().tobytes() + labels.numpy().tobytes() + json.dumps(visuals).encode())
        return digest.hexdigest()[:16]

    def modalities(self) -> Counter:
        """How many records hold an image only, a clip only, both, or neither."""
        names = {(): "text", ("image",): "image", ("video",): "video", ("image", "video"): "both"}
        return Counter(names[tuple(sorted({kind for _, kind in visuals}))] for visuals in self.visuals)


def check_conversations(records, tokenizer: Tokenizer, config: ModelConfig, cut: int = 0):
    """Raises what no training on these records could go on from: ContextLengthError for a conversation that is too
    long, DataError if nothing is learned. cut: as `ConversationDataset` takes it."""
    ConversationDataset(records, tokenizer, config, load=None, cut=cut)  # encoding checks every record


def _cut(ids: list[int], labels: list[int], cut: int, where: str) -> tuple[list[int], list[int]]:
    """The first `cut` tokens. Raises ContextLengthError if that would lose a visual token."""
    if VISUAL in ids[cut:]:
        raise ContextLengthError(
            f"{where} has visual tokens beyond the first {cut} tokens: use fewer frames or images, or more context."
        )
    return ids[:cut], labels[:cut]


@dataclass
class Batch:
    """A mixed batch: images, clips and text in any order."""

    input_ids: Tensor  # (b, s) int64, right-padded with 0; -200 where a visual token goes
    labels: Tensor  # (b, s) int64; -100 where nothing is learned
    visuals: list[Tensor]  # of all rows, in order

    def to(self, device) -> "Batch":
        return Batch(self.input_ids.to(device), self.labels.to(device), _moved(self.visuals, torch.device(device)))


def _moved(visuals: list[Tensor], device: torch.device) -> list[Tensor]:
    """Visuals on a device; all visuals of one shape move in one transfer."""
    if all(visual.device.type == device.type for visual in visuals):
        return visuals
    return batched_by_shape(visuals, lambda batch: batch.to(device))


def collate(samples: Sequence[dict]) -> Batch:
    """Samples of different lengths and modalities as one right-padded batch."""
    return Batch(
        input_ids=pad_rows([s["input_ids"] for s in samples], 0),
        labels=pad_rows([s["labels"] for s in samples], IGNORE),
        visuals=[visual for s in samples for visual in s["visuals"]],
    )
