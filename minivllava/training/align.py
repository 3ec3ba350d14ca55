"""Alignment before projection: encoders are bound to the text encoder by contrast (LanguageBind, section 3).

`align_image` trains image and text encoders together, as CLIP was. `align_video` then freezes the text
encoder and binds the video encoder to it: its temporal parts learn, its spatial weights stay the image
encoder's (the released encoders trained CLS and post-norm, too), and a share of the patches is hidden at each step.

Batches take whole families of the embedded world, of which the last may be cut: a scene beside siblings that differ in
one attribute. So the other captions of a batch cannot be told apart by colour alone, which is what lets shapes be
bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minivllava.config import ModelConfig
from minivllava.data.cache import MediaCache, cache_media
from minivllava.data.records import unique_files
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import ConfigError
from minivllava.files import json_hash
from minivllava.models.languagebind import LanguageBind
from minivllava.run_config import TrainingConfig
from minivllava.training.loop import Task, freeze_all_but, train


@dataclass
class Pairs:
    """A batch of visuals (b, ...) and their captions' ids (b, s)."""

    pixels: Tensor
    ids: Tensor

    def to(self, device) -> "Pairs":
        return Pairs(self.pixels.to(device), self.ids.to(device))


def align_image(
    model: LanguageBind, records, tokenizer: Tokenizer, config: ModelConfig, training: TrainingConfig,
    folder: str | Path, device: str | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Trains image encoder, text encoder, projections and temperature together. Returns the log.

    config: the sizes of visuals and texts. folder, device, progress: as `train` takes them.
    """
    freeze_all_but(
        model, model.encoders["image"], model.projections["image"], model.text_encoder, model.text_projection
    )
    model.logit_scale.requires_grad_(True)
    return _align(model, "image", records, tokenizer, config, training, folder, device, progress)


def align_video(
    model: LanguageBind, records, tokenizer: Tokenizer, config: ModelConfig, training: TrainingConfig,
    folder: str | Path, device: str | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Binds the video encoder, begun from the image encoder, to the frozen text encoder. Returns the log.

    What learns: temporal attention, norms and embeddings, the projection and the temperature.
    """
    torch.manual_seed(training.seed)  # the temporal embedding begins at random
    video = model.encoders["video"]
    start = type(video).from_image_encoder(video.config, model.encoders["image"])
    video.load_state_dict(start.state_dict())
    model.projections["video"].load_state_dict(model.projections["image"].state_dict())
    freeze_all_but(model, model.projections["video"])
    for parameter in (*video.temporal_parameters(), model.logit_scale):
        parameter.requires_grad_(True)
    return _align(model, "video", records, tokenizer, config, training, folder, device, progress)


def _align(model, modality, records, tokenizer, config, training, folder, device, progress) -> list[dict]:
    files = unique_files(records, modality)
    cache = cache_media(files, modality, config, dtype="float16", progress=progress)
    captions = [row["conversations"][-1]["value"] for row in records]
    task = contrastive_task(
        modality, cache, [row["visuals"][0] for row in records], captions, records["family"], tokenizer,
        config.text.context, training,
    )  # fmt: skip
    return train(model, task, training, folder, f"align {modality}", device, progress)


def contrastive_task(
    modality: str,
    cache: MediaCache,
    files: list[str],
    captions: list[str],
    families: list[int],
    tokenizer: Tokenizer,
    context: int,
    training: TrainingConfig,
) -> Task:
    """Symmetric InfoNCE over pairs of a file and its caption.

    Raises ConfigError if the batch would be cut into parts: each pair must see all others at once.
    """
    if training.accumulation > 1 or training.batch_size > len(files):
        raise ConfigError(
            f"Alignment contrasts whole batches: use accumulation 1, not {training.accumulation}, and a batch_size "
            f"of at most the {len(files)} pairs there are, not {training.batch_size}."
        )

    ids = tokenizer.pad_texts(captions, context)
    lengths = (ids == tokenizer.eot).int().argmax(dim=1) + 1

    def collate(indices) -> Pairs:
        pixels = torch.stack([cache[files[i]] for i in indices]).float()
        return Pairs(pixels, ids[indices, : lengths[indices].max()])

    def loss(model: nn.Module, batch: Pairs) -> Tensor:
        return model(modality, batch.pixels, batch.ids) * len(batch.ids)

    return Task(
        sampler=family_batches(families, training.batch_size, training.seed),
        collate=collate,
        count=lambda batch: len(batch.ids),
        loss=loss,
        data=json_hash([files, captions]),
    )


def family_batches(families: list[int], batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """A sampler whose batches hold whole families, if there are any (family -1: a record on its own); the last one
    of a batch may be cut."""
    members: dict[int, list[int]] = {}
    for index, family in enumerate(families):
        members.setdefault(family if family >= 0 else -1 - index, []).append(index)
    groups = list(members.values())

    def sampler(step: int) -> np.ndarray:
        chosen: list[int] = []
        order = np.random.default_rng([seed, step]).permutation(len(groups))
        for group in order:
            chosen += groups[group]
            if len(chosen) >= batch_size:
                break
        return np.array(chosen[:batch_size])

    return sampler
