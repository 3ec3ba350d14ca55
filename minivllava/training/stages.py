"""The two stages of Video-LLaVA (the paper's section 3.3).

Stage 1, understanding: captions teach the shared projector; encoders and language model are frozen.
Stage 2, instruction tuning: multi-turn conversations teach projector and language model.
Both mix pictures and clips in every batch: that is the paper's joint training.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from minivllava.config import TrainingConfig
from minivllava.data.cache import cache_media, weights_fingerprint
from minivllava.data.dataset import Conversations, load_pixels, unique_files
from minivllava.models.vllava import VideoLLaVA
from minivllava.training.language import conversation_task, only
from minivllava.training.loop import train


def stage1(model: VideoLLaVA, records, config: TrainingConfig, folder: str | Path, **options) -> list[dict]:
    """Trains the projector on captions, with the template `config.stage1_template`. Returns the log."""
    only(model, model.projector)
    return _train(model, records, config, folder, "stage 1", model.config.stage1_template, **options)


def stage2(model: VideoLLaVA, records, config: TrainingConfig, folder: str | Path, **options) -> list[dict]:
    """Trains projector and language model on conversations. Returns the log."""
    only(model, model.projector, model.language_model)
    return _train(model, records, config, folder, "stage 2", model.config.template, **options)


def _train(model, records, config, folder, label, template, cached: bool = True, **options) -> list[dict]:
    load = visual_loader(model, records, cached, options.get("progress", True))
    dataset = Conversations(records, model.tokenizer, model.config, load, template_name=template)
    return train(model, conversation_task(dataset, config), config, folder, label=label, **options)


def visual_loader(
    model: VideoLLaVA, records, cached: bool = True, progress: bool = True
) -> Callable[[str, str], Tensor]:
    """load(path, kind) for `Conversations`: features of the frozen encoders from the cache, or pixels."""
    config = model.config
    if not cached:
        return lambda path, kind: load_pixels(path, kind, config, config.video.frames)
    encoders = {"image": model.image_encoder, "video": model.video_encoder}
    caches = {
        kind: cache_media(
            unique_files(records, kind),
            kind,
            config,
            encode=lambda pixels: model.features(pixels.to(model.device)),
            fingerprint=f"{weights_fingerprint(encoder)} {config.select_layer} {config.keep_cls_image} "
            f"{config.keep_cls_video}",
            progress=progress,
        )
        for kind, encoder in encoders.items()
    }
    return lambda path, kind: caches[kind][path]
