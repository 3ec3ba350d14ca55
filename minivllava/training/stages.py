"""The two stages of Video-LLaVA (the paper's section 3.3).

Stage 1, understanding: captions teach the shared projector; encoders and language model are frozen.
Stage 2, instruction tuning: multi-turn conversations teach projector and language model.
Both draw images and clips into the same batches: that is the paper's joint training. `images_first` lets stage 2
begin without clips. Batches are drawn at random; the original keeps records of text alone apart in stage 2, and groups
each kind by length.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minivllava.data.cache import cache_media, weights_fingerprint
from minivllava.data.dataset import ConversationDataset, Load, load_pixels
from minivllava.data.records import unique_files
from minivllava.errors import DataError
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import to_dict
from minivllava.run_config import TrainingConfig
from minivllava.training.language import conversation_task
from minivllava.training.loop import accelerator_for, freeze_all_but, shuffled_batches, train
from minivllava.training.lora import lora
from minivllava.training.recompute import recomputing


def stage1(
    model: VideoLLaVA,
    records,
    config: TrainingConfig,
    folder: str | Path,
    cached: bool = True,
    load: Load | None = None,
    cut: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains the projector on captions, with the template and the aspect of stage 1. Returns the log.

    cached: the frozen encoders' features are computed once and kept; otherwise every batch decodes and encodes its
    files. load: gives features or pixels in their place, as `visual_loader` does. cut: as for `ConversationDataset`.
    folder, device, progress: as `train` takes them.
    """
    load = load or _visuals(model, records, config, cached, model.config.stage1_aspect, device, progress)
    dataset = ConversationDataset(records, model.tokenizer, model.config, load, model.config.stage1_template, cut)
    task = conversation_task(dataset, config, decodes=not cached)
    freeze_all_but(model, model.projector)
    with recomputing(model.language_model, config):
        return train(model, task, config, folder, "stage 1", device, progress)


def stage2(
    model: VideoLLaVA,
    records,
    config: TrainingConfig,
    folder: str | Path,
    images_first: float = 0.0,
    cached: bool = True,
    load: Load | None = None,
    cut: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains projector and language model on conversations; with `config.lora_rank`, the projector and adapters of
    the language model, merged at the end. Returns the log.

    images_first: the share of the steps, from the first on, that take no record with a clip. The other arguments are
    those of `stage1`.
    """
    load = load or _visuals(model, records, config, cached, model.config.aspect, device, progress)
    dataset = ConversationDataset(records, model.tokenizer, model.config, load, cut=cut)
    task = conversation_task(dataset, config, decodes=not cached)
    if images_first:
        sampler = _images_first(without_clips(records), config, round(images_first * config.steps), task.sampler)
        task = replace(task, sampler=sampler, data=f"{task.data}, {images_first:g} images first")
    freeze_all_but(model, model.projector, model.language_model)
    adapters = lora(model.language_model, config) if config.lora_rank else nullcontext()
    with adapters, recomputing(model.language_model, config):
        return train(model, task, config, folder, "stage 2", device, progress)


def _visuals(model: VideoLLaVA, records, config: TrainingConfig, cached, aspect, device, progress) -> Load:
    if cached:  # the encoders compute features on the device that training uses
        model.to(accelerator_for(config, device).device)
    return visual_loader(model, records, cached, aspect, progress)


def without_clips(records) -> np.ndarray:
    """Which records `images_first` begins with. Raises DataError if every record has a clip."""
    still = [i for i, clips in enumerate(records["videos"]) if not clips]
    if not still:
        raise DataError("Every record has a clip, and stage 2 is to begin on images: set images_first to 0.")
    return np.array(still)


def _images_first(still: np.ndarray, config: TrainingConfig, steps: int, mixed: Callable) -> Callable:
    """A sampler that takes only the records `still` in its first `steps` steps."""
    first = shuffled_batches(len(still), config.batch_size, config.seed)
    return lambda step: still[first(step)] if step < steps else mixed(step)


def visual_loader(
    model: VideoLLaVA,
    records,
    cached: bool = True,
    aspect: str | None = None,
    progress: bool = True,
) -> Load:
    """load(path, kind) for `ConversationDataset`: features of the frozen encoders from the cache, or pixels.

    aspect: of images, if it is not the config's. A loader made once for the records of several runs, and given to the
    stages as `load`, spares each run a cache of its own.
    """
    config = replace(model.config, aspect=aspect or model.config.aspect)
    if not cached:
        return lambda path, kind: load_pixels(path, kind, config, config.video.frames)
    caches = {
        kind: cache_media(
            unique_files(records, kind),
            kind,
            config,
            encode=model.features,
            fingerprint=features_fingerprint(model, kind),
            progress=progress,
        )
        for kind in ("image", "video")
    }
    return lambda path, kind: caches[kind][path]


def features_fingerprint(model: VideoLLaVA, kind: str) -> str:
    """All that the features of images ("image") or clips ("video") depend on, except the files."""
    config = model.config
    encoder = {"image": model.image_encoder, "video": model.video_encoder}[kind]
    words = [weights_fingerprint(encoder), config.select_layer, config.keep_cls_image, config.keep_cls_video]
    words += [to_dict(encoder.config)]  # the same weights compute something else with other heads or activations
    dtype = next(encoder.parameters()).dtype
    words += [] if dtype == torch.float32 else [dtype]
    words += ["pooled"] if config.projector == "pooling" and kind == "video" else []
    return " ".join(str(word) for word in words)
