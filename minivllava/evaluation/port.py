"""What the port to `transformers` lost: a model's own weights with temporal attention and without it.

The port (`VideoLlavaForConditionalGeneration`) has no place for the video encoder's temporal attention: its
converter drops those tensors, so each frame is encoded as if it was an image. It also runs another
activation, quick_gelu. Two tests show what that does:

    questions      exact match on clips of the embedded world, by type, and of those that only the order of frames tells
    permutation    frames in another order: without temporal attention the features are the same ones, reordered,
                   and only the language model's positions still say which frame came first
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from einops import rearrange
from torch import Tensor

from minivllava.config import VisionConfig
from minivllava.data.cache import weights_fingerprint
from minivllava.data.dataset import load_pixels
from minivllava.data.records import load_records, unique_files
from minivllava.errors import ConfigError, DataError
from minivllava.evaluation.evaluate import evaluate
from minivllava.evaluation.metrics import Z
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment

WITH, WITHOUT, PORT = "temporal attention", "without it", "and quick_gelu"


def without_temporal_attention(model: VideoLLaVA, **changes) -> VideoLLaVA:
    """The same model, of the very same parameters, with the video encoder's temporal parts left out.

    changes: fields of its `ModelConfig` to change as well. Raises ConfigError for a quantised model.
    """
    if getattr(model.language_model, "quantized", None):
        raise ConfigError("A quantised model cannot be taken apart: load it without --quantize.")
    video = changes.pop("video", model.config.video)
    config = replace(model.config, video=replace(video, temporal=False), **changes)
    with torch.device("meta"):
        new = VideoLLaVA(config, model.tokenizer)
    tensors = model.state_dict() | dict(model.named_parameters(remove_duplicate=False))
    new.load_state_dict({name: t for name, t in tensors.items() if "temporal" not in name}, assign=True)
    new.language_model.tie()
    return new.eval()


def views(model: VideoLLaVA) -> dict[str, VideoLLaVA]:
    """The model as it is, without temporal attention, and with the port's activation too. Raises ConfigError for a
    model that has no temporal attention to lose."""
    if not model.config.video.temporal:
        raise ConfigError(
            "This model has no temporal attention: name a checkpoint of the original, or of this project."
        )
    found = {WITH: model, WITHOUT: without_temporal_attention(model)}
    encoders = {"image": model.config.image, "video": model.config.video}
    if all(isinstance(config, VisionConfig) and config.activation == "gelu" for config in encoders.values()):
        port = {kind: replace(config, activation="quick_gelu") for kind, config in encoders.items()}
        found[PORT] = without_temporal_attention(model, **port)
    return found


def port_study(
    model: VideoLLaVA, world: str | Path, limit: int | None = None, clips: int = 16, progress: bool = True
) -> dict:
    """Both tests. world: a folder that `build_world` made; limit: at most this many questions about its test clips,
    half of them such that only the order of frames tells; clips: how many to put in another order.

    Returns `rows` (by type of question), `permutation` (by clip), `questions`, `of` (the weights' hash), `made_with`;
    files are named as they lie in the world.
    """
    records = load_records(Path(world) / "test.json")
    records = records.select([i for i, videos in enumerate(records["videos"]) if videos])
    if not len(records):
        raise DataError(f"{world} holds no test clips: make a world with some.")
    records = chosen(records, limit)
    models = views(model)
    predictions = {
        name: evaluate(variant, records, max_new_tokens=32, progress=progress) for name, variant in models.items()
    }
    tests = [permutation_test(models, file) for file in unique_files(records, "video")[:clips]]
    for of_file in (*tests, *(answer for answers in predictions.values() for answer in answers)):
        of_file["file"] = os.path.relpath(of_file["file"], world)
    return {
        "rows": rows(predictions),
        "permutation": tests,
        "questions": predictions,
        "of": {"weights": weights_fingerprint(model)},
        "made_with": environment(),
    }


def chosen(records, limit: int | None):
    """At most `limit` records: as many as there are, up to a half, of those that need the order of frames."""
    if limit is None or limit >= len(records):
        return records
    ordered = [i for i, row in enumerate(records) if row["needs_order"] and row["needs_order"][-1]]
    others = sorted(set(range(len(records))) - set(ordered))
    kept = ordered[: max(limit // 2, limit - len(others))]
    return records.select(sorted(kept + others[: limit - len(kept)]))


def rows(predictions: dict[str, Sequence[dict]]) -> list[dict]:
    """By what is asked: `asked` (a type; or "needs order": only the order of frames tells), `n`, each view's share
    right, `lost` (with temporal attention less without it), and `interval`, the 95 % interval of that difference over
    the same questions (normal approximation); None where all of them differ alike, which is no certainty."""
    first = predictions[WITH]
    groups = {"needs order": [i for i, p in enumerate(first) if p["needs_order"]]}
    groups["others"] = [i for i, p in enumerate(first) if not p["needs_order"]]
    for kind in sorted({p["type"] for p in first}):
        groups[kind] = [i for i, p in enumerate(first) if p["type"] == kind]
    table = []
    for asked, members in groups.items():
        if not members:
            continue
        right = {name: [float(answers[i]["correct"]) for i in members] for name, answers in predictions.items()}
        lost = [kept - left for kept, left in zip(right[WITH], right[WITHOUT], strict=True)]
        shares = {name: fmean(hits) for name, hits in right.items()}
        interval = None
        if len(set(lost)) > 1:
            spread = Z * stdev(lost) / math.sqrt(len(lost))
            interval = [max(-1.0, fmean(lost) - spread), min(1.0, fmean(lost) + spread)]
        table.append({"asked": asked, "n": len(members), **shares, "lost": fmean(lost), "interval": interval})
    return table


@torch.inference_mode()
def permutation_test(models: dict[str, VideoLLaVA], file: str | Path) -> dict:
    """How far a clip's features are from equivariance: |f(P x) - P f(x)| / |f(x)|, of each view, for frames in
    reverse. 0: each frame is encoded as if it stood alone. Returns `file` and each view's distance."""
    distances = {"file": str(file)}
    for name, model in models.items():
        config = model.config
        pixels = load_pixels(str(file), "video", config, config.video.frames).to(next(model.projector.parameters()))
        straight, backwards = (frame_features(model, clip) for clip in (pixels, pixels.flip(0)))
        distances[name] = ((backwards - straight.flip(0)).norm() / straight.norm()).item()
    return distances


def frame_features(model: VideoLLaVA, clip: Tensor) -> Tensor:
    """What the projector reads of each frame of a clip (t, c, h, w): (t, n, d)."""
    config = model.config
    features = model.video_encoder.features(clip[None], config.select_layer, config.keep_cls_video)
    return rearrange(features.float(), "1 t n d -> t n d")
