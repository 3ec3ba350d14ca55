"""Whole runs: from scratch or from parts, on the embedded world; stage 2 on your own data."""

import hashlib
import math
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch

from minivllava.checkpoints.loading import load_language, load_languagebind, load_vllava, need_tokenizer
from minivllava.checkpoints.saving import save_model
from minivllava.checkpoints.storage import read_card
from minivllava.config import ModelConfig, check_same_vit
from minivllava.data.build import build_world
from minivllava.data.cache import weights_fingerprint
from minivllava.data.dataset import check_conversations, probe_pixels
from minivllava.data.records import check_folder, check_media, load_records
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.language import LanguageModel
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import to_dict
from minivllava.run_config import Preset, TrainingConfig
from minivllava.training.align import align_image, align_video
from minivllava.training.language import pretrain_language, train_tokenizer
from minivllava.training.loop import check_precision, scheduled
from minivllava.training.run_folder import Run, as_before, running
from minivllava.training.stages import stage1, stage2, without_clips


def train_video_llava(
    preset: Preset, folder: str | Path, parts: str | Path | None = None, more_text: bool = False,
    device: str | None = None, progress: bool = True,
) -> VideoLLaVA:  # fmt: skip
    """The whole recipe: the parts that are not there yet, then stage 1 and stage 2.

    parts: a folder that holds `languagebind/`, `language/` or both, as the paper starts from LanguageBind and
    Vicuna; the part it lacks is trained, and without a folder both are. more_text: the language model of that folder
    is pre-trained further, on the preset's texts. Raises CheckpointError when the folder holds neither part, or no
    language model to train further, ConfigError when a part's sizes are not the preset's, and for a recipe that no
    run can have, DataError when stage 2 is to begin on images and there are none.
    """
    language_part, bound_part = _part(parts, "language"), _part(parts, "languagebind")
    if parts is not None and not (language_part or bound_part):
        raise CheckpointError(f"{parts} holds neither languagebind/ nor language/: name a folder of pretrained parts.")
    if more_text and not language_part:
        raise CheckpointError(f"{parts} holds no language/ to train further: name parts that have one.")
    _check_sizes(preset.model, bound_part and bound_part[0], language_part and language_part[0])
    if not bound_part:  # said before hours of training
        check_same_vit(preset.model.image, preset.model.video)
    stages = ["language"] if more_text or not language_part else []
    stages += [] if bound_part else ["align_image", "align_video"]
    check_precision(preset, [*stages, "stage1", "stage2"])
    world = build_world(preset.world)
    if preset.images_first:
        without_clips(load_records(world / "stage2.json"))
    weights = [weights_fingerprint(part[0]) for part in (language_part, bound_part) if part]
    start = (f"{parts}, more text" if more_text else str(parts)) if parts else "scratch"
    with running(folder, {"preset": to_dict(preset), "start": start, "weights": weights}) as run:
        if more_text or not language_part:
            language_part = load_language(_train_language(preset, world, run, language_part, device, progress))
        language, tokenizer = language_part
        if not bound_part:
            bound_part = load_languagebind(_train_languagebind(preset, tokenizer, world, run, device, progress))
        bound, _ = bound_part
        config = replace(preset.model, text=bound.config.text, language=language.config)
        model = assemble(config, bound, language, tokenizer)
        joint = partial(stage2, images_first=preset.images_first)
        for name, file, stage, training in (
            ("stage1", "stage1.json", stage1, preset.stage1),
            ("model", "stage2.json", joint, preset.stage2),
        ):
            train = partial(stage, model, load_records(world / file), training, device=device, progress=progress)
            model = load_vllava(run.step(name, train, model.save_pretrained))
    return model


def _part(parts: str | Path | None, name: str):
    """(model, tokenizer) of a pretrained part, or None if the folder has no such part."""
    if parts is None or not (Path(parts) / name).is_dir():
        return None
    return {"language": load_language, "languagebind": load_languagebind}[name](Path(parts) / name)


def _train_language(preset: Preset, world: Path, run: Run, start, device, progress) -> Path:
    """Tokenizer and language model from text alone, or `start` (both of them) further; returns their folder."""
    if run.done("language"):
        return run.folder / "language"
    texts = load_records(world / "text.json")
    tokenizer = start[1] if start else train_tokenizer(texts, preset.model.language.vocab_size)
    stop = start[0].config.stop if start else ()
    language = replace(preset.model.language, vocab_size=len(tokenizer), stop=stop)
    torch.manual_seed(preset.language.seed)
    model = VideoLLaVA(replace(preset.model, language=language), tokenizer)
    if start:
        model.language_model.load_state_dict(start[0].state_dict())
    return run.step(
        "language",
        lambda state: pretrain_language(model, texts, preset.language, state, device, progress),
        lambda path: save_model(model.language_model, path, "language", tokenizer=tokenizer),
    )


def _train_languagebind(preset: Preset, tokenizer, world: Path, run: Run, device, progress) -> Path:
    """Image and text encoder together, then the video encoder onto the frozen text encoder; returns their folder."""
    text = replace(preset.model.text, vocab_size=len(tokenizer))
    config = replace(preset.model, text=text)
    torch.manual_seed(preset.align_image.seed)
    bound = LanguageBind(LanguageBindConfig({"image": config.image, "video": config.video}, text, config.embed_dim))
    for name, file, align, recipe in (
        ("languagebind-image", "align_images.json", align_image, preset.align_image),
        ("languagebind-video", "align_clips.json", align_video, preset.align_video),
    ):
        records = load_records(world / file)
        path = run.step(
            name,
            partial(align, bound, records, tokenizer, config, recipe, device=device, progress=progress),
            partial(save_model, bound, kind="languagebind", tokenizer=tokenizer),
        )
        bound, _ = load_languagebind(path)
    return path


def finetune(
    init: str | Path, files, media, training: TrainingConfig, epochs: float, folder: str | Path,
    skip_broken: bool = False, device: str | None = None, progress: bool = True,
) -> tuple[VideoLLaVA, list[str]]:  # fmt: skip
    """Stage 2 on your own records, from a finished checkpoint. Returns the model and the files left out.

    The recipe is `training`, for as many steps as `epochs` passes take (`scheduled`). Every file and every conversation
    is checked before training starts and anything is written: broken files raise MediaError, unless `skip_broken`; a
    conversation that is too long, ContextLengthError.
    """
    if not 0 < epochs < math.inf:
        raise ConfigError(f"epochs is {epochs:g}: use a number above 0.")
    files = [files] if isinstance(files, str | Path) else list(files)
    model = load_vllava(init)
    need_tokenizer(model.tokenizer, init)
    check_folder(media)
    media = as_before(folder, "media", Path(files[0]).parent if media is None else media)
    records = load_records(files, media)
    check_conversations(records, model.tokenizer, model.config)
    records, skipped = check_media(records, skip_broken, progress, probe_pixels(model.config))
    training = scheduled(training, len(records), epochs)
    data = {str(file): hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    start = {"start": str(init), "weights": weights_fingerprint(model)}
    with running(folder, {"training": to_dict(training), **start, "data": data, "media": media}) as run:
        path = run.step(
            "model",
            lambda state: stage2(model, records, training, state, device=device, progress=progress),
            model.save_pretrained,
        )
    return load_vllava(path), skipped


def export(run: str | Path, out: str | Path):
    """Copies what a run made into `out`, in half precision: the parts it trained, the finished model under the
    preset's name, and the run's description and log. This is how `data/pretrained` was filled.

    Raises CheckpointError for a run that is not finished, or not of a preset, and where `out` is the run or a file.
    """
    run, out = Path(run), Path(out)
    if out.is_file() or out.resolve() == run.resolve():
        raise CheckpointError(f"{out} is {'a file' if out.is_file() else 'the run itself'}: name another folder.")
    model = load_vllava(run / "model")
    card = read_card(run / "run.json", "name the folder of a run")
    if "preset" not in card:
        raise CheckpointError(
            f"{run / 'run.json'} names no preset, since the run was on data of your own: copy {run / 'model'} instead."
        )
    name = card["preset"]["name"]
    half = torch.float16
    for part, step, load in (
        ("languagebind", "languagebind-video", load_languagebind),
        ("language", "language", load_language),
    ):
        if (run / step).is_dir():
            trained, tokenizer = load(run / step)
            save_model(trained, out / "parts" / part, part, half, tokenizer=tokenizer)
            for file in ("run.json", "log.json"):  # they stay with the parts when a later run starts from them
                shutil.copy(run / file, out / "parts" / file)
    model.save_pretrained(out / name, dtype=half)
    for file in ("run.json", "log.json"):
        shutil.copy(run / file, out / file)


def assemble(config: ModelConfig, bound: LanguageBind, language, tokenizer) -> VideoLLaVA:
    """A Video-LLaVA from bound encoders and a language model; its projector is new (seed 0).

    Raises ConfigError when a part has other sizes than the config.
    """
    _check_sizes(config, bound, language)
    torch.manual_seed(0)
    model = VideoLLaVA(config, tokenizer)
    model.image_encoder.load_state_dict(bound.encoders["image"].state_dict())
    model.video_encoder.load_state_dict(bound.encoders["video"].state_dict())
    model.language_model.load_state_dict(language.state_dict())
    return model


def _check_sizes(config: ModelConfig, bound: LanguageBind | None, language: LanguageModel | None):
    """Raises ConfigError if a part has other sizes than the config; vocabularies and ends are each part's own."""
    found = {**bound.config.encoders, "text": bound.config.text} if bound else {}
    found |= {"language": language.config} if language else {}
    for name, part in found.items():
        wanted = getattr(config, name, part)
        own = {field: getattr(part, field) for field in ("vocab_size", "stop") if hasattr(part, field)}
        wanted = replace(wanted, **own) if own else wanted
        if part != wanted:
            values = ((f.name, getattr(part, f.name), getattr(wanted, f.name, None)) for f in fields(part))
            unlike = "; ".join(f"{field} {is_!r}, not {should!r}" for field, is_, should in values if is_ != should)
            raise ConfigError(
                f"The pretrained {name} part has other sizes than the preset ({unlike}): choose the preset that the "
                "parts were made with, parts of this preset (--init), or --from-scratch, which makes them."
            )
