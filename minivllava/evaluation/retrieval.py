"""The joint space without training for a task: each image or clip finds its caption, or the name of its class.

Zero-shot retrieval and classification as LanguageBind measures them (arXiv 2310.01852, section 4), and how the
clouds of embeddings lie.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from minivllava.config import ModelConfig
from minivllava.data.dataset import load_pixels
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import ConfigError, DataError
from minivllava.models.languagebind import LanguageBind

SQUARE = ModelConfig(aspect="square")  # how files become pixels where models are made here
TEMPLATES = {"image": ("a photo of a {}.",), "video": ("a video of {}.",), "depth": ("a depth map of a {}.",)}


def recall_at(similarity: Tensor, ks: Sequence[int] = (1, 5, 10), correct: Tensor | None = None) -> list[float]:
    """Share of rows that have one of their own columns among the k most similar, for each k.

    similarity: (rows, columns). correct: bool (rows, columns), which columns are a row's own; by default the
    diagonal. A row with several own columns (a clip with several captions) goes by the best of them. Of columns
    that are equally similar the own one comes last, so an encoder that makes everything the same finds nothing.
    Raises DataError for a row without a column of its own, and for similarities that are not finite.
    """
    if not similarity.isfinite().all():
        raise DataError("Some similarities are not finite numbers: the encoders' weights are broken, or hold NaN.")
    if correct is None:
        correct = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    if not correct.any(1).all():
        raise DataError(f"Row {int(correct.any(1).int().argmin())} of the similarities has no column of its own.")
    best = similarity.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
    before = ((similarity >= best) & ~correct).sum(1)  # others in front of the best own one, or beside it
    return [float((before < k).float().mean()) for k in ks]


def retrieval(visuals: Tensor, texts: Tensor, owners: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict:
    """Recall@k both ways, in per cent: {"text to visual": {"R@1": ...}, "visual to text": {...}}.

    visuals: unit vectors (visuals, d). texts: unit vectors (texts, d) of captions; owners: which visual each
    describes, so a visual may have several captions, and is found through the best of them.
    """
    similarity = texts @ visuals.T
    correct = torch.as_tensor(owners, device=texts.device)[:, None] == torch.arange(len(visuals), device=texts.device)
    ways = {"text to visual": (similarity, correct), "visual to text": (similarity.T, correct.T)}
    return {
        way: {f"R@{k}": 100 * share for k, share in zip(ks, recall_at(of, ks, own), strict=True)}
        for way, (of, own) in ways.items()
    }


@torch.inference_mode()
def embed_files(
    model: LanguageBind, modality: str, files: Sequence[str | Path], batch_size: int = 64, progress: bool = True,
    config: ModelConfig = SQUARE,
) -> Tensor:  # fmt: skip
    """Unit vectors of images or clips of one modality: (files, d), float32, on the CPU.

    config: how files become pixels (its aspect, antialias, clip_resize and frame_sampling), which bound encoders do
    not say themselves; sizes are the encoder's.

    Raises ConfigError for a modality that the model has no encoder for, MediaError for a file that cannot be read.
    """
    from tqdm.auto import tqdm

    if modality not in model.config.encoders:
        raise ConfigError(f"There is no {modality} encoder; these are bound: {', '.join(model.config.encoders)}.")
    encoder, kind = model.config.encoders[modality], "video" if modality == "video" else "image"
    weight = model.projections[modality].weight
    found = []
    with tqdm(total=len(files), desc=f"embed {modality}", disable=not progress, leave=False) as bar:
        for first in range(0, len(files), batch_size):
            batch = [
                load_pixels(file, kind, config, encoder.frames, encoder) for file in files[first : first + batch_size]
            ]
            found.append(model.embed(modality, torch.stack(batch).to(weight)).float().cpu())
            bar.update(len(batch))
    return torch.cat(found)


@torch.inference_mode()
def embed_texts(model: LanguageBind, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Unit vectors of texts: (texts, d), float32, on the CPU. Texts too long for the encoder are cut, as in CLIP."""
    device = model.text_projection.weight.device
    found = []
    for first in range(0, len(texts), batch_size):
        ids = tokenizer.pad_texts(list(texts[first : first + batch_size]), model.config.text.context)
        found.append(model.embed_text(ids.to(device)).float().cpu())
    return torch.cat(found)


def embed_classes(
    model: LanguageBind, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit vectors of classes (classes, d): the mean of a name's embeddings in all templates ("a photo of a {}.").

    Prompt ensembling in embedding space: CLIP, arXiv 2103.00020, section 3.1.4. Raises ConfigError for a template
    without {}.
    """
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"The template {template!r} has no {{}} where the name of a class goes.")
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = embed_texts(model, tokenizer, prompts)
    return F.normalize(reduce(vectors, "(classes templates) d -> classes d", "mean", templates=len(templates)), dim=-1)


def zero_shot_classify(
    model: LanguageBind,
    tokenizer: Tokenizer,
    modality: str,
    files: Sequence[str | Path],
    classes: Sequence[str],
    templates: Sequence[str] = (),
) -> list[str]:
    """The class whose prompts lie nearest to each file. templates: by default one simple one for the modality."""
    vectors = embed_classes(model, tokenizer, classes, templates or TEMPLATES.get(modality, ("{}",)))
    nearest = (embed_files(model, modality, files, progress=False) @ vectors.T).argmax(1)
    return [classes[i] for i in nearest.tolist()]


def class_accuracy(visuals: Tensor, classes: Tensor, labels: Sequence[int]) -> dict:
    """Top-1 and top-5 accuracy in per cent, {"top 1": ...}; ties are misses. Of five classes or fewer, top 1 alone.

    visuals: unit vectors (visuals, d). classes: unit vectors (classes, d). labels: the right class of each visual.
    """
    correct = F.one_hot(torch.as_tensor(labels), len(classes)).bool()
    ks = [1, 5] if len(classes) > 5 else [1]
    shares = recall_at(visuals @ classes.T, ks, correct)
    return {f"top {k}": 100 * share for k, share in zip(ks, shares, strict=True)}


def modality_gap(first: Tensor, second: Tensor) -> float:
    """Distance between the centres of two clouds of unit vectors (b, d): 0 to 2.

    Source: Liang et al., Mind the Gap, arXiv 2203.02053.
    """
    return float((first.mean(0) - second.mean(0)).norm())


def principal_plane(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The plane in which vectors (b, d) vary most: (centre (d,), axes (d, 2)); a point is (x - centre) @ axes.

    Each axis points to where its largest entry is positive, so the map does not turn over between machines.
    """
    centre = vectors.mean(0)
    axes = torch.linalg.svd(vectors - centre, full_matrices=False).Vh[:2].T
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return centre, axes * largest.sign()
