"""Training on real data from published parts: a recipe file names the parts and the data, a preset the rest.

Records are in LLaVA's format, as the original's files have them. Media is decoded as training needs it: the
features of a million clips would fill disks. Everything else is as on the embedded world: the same two stages.
"""

import math
import re
import tomllib
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from minivllava.checkpoints.backbones import assemble_backbones, load_any_language, load_encoder
from minivllava.checkpoints.loading import load_vllava
from minivllava.data.dataset import check_conversations
from minivllava.data.records import read_records, refuse_broken, unique_files
from minivllava.errors import ConfigError, DataError, MediaError
from minivllava.fields import check_range, check_types
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import from_dict, override, to_dict
from minivllava.presets import preset
from minivllava.run_config import Preset, TrainingConfig
from minivllava.training.loop import check_precision, scheduled
from minivllava.training.lora import lora_recipe
from minivllava.training.recompute import check_recomputation
from minivllava.training.run_folder import Run, as_before, running
from minivllava.training.stages import stage1, stage2

UNUSED = {  # fields of a preset
    r"(name|world|language|align_image|align_video|images_first)\b": "it trains stage 1 and stage 2, on your records",
    r"model\.(image|text|language|embed_dim)\b|model\.video\b(?!\.frames)": "that comes with the parts",
    r"stage1\.lora_": "stage 1 trains the projector alone",
}


@dataclass(frozen=True)
class Recipe:
    """Which parts, which data, how much of it. Paths of data are under the root that is given when it is run."""

    preset: str
    image_encoder: str  # folders or hub ids
    video_encoder: str
    language_model: str
    stage1: tuple[str, ...]  # LLaVA-format JSON files
    stage2: tuple[str, ...]
    stage1_records: int = 0  # a random part of this many; 0: all
    stage2_records: int = 0
    epochs: float = 1.0
    context: int = 0  # tokens after which a record is cut; 0: the language model's own context
    change: tuple[str, ...] = ()  # fields of the preset, e.g. "stage2.batch_size=64"; not UNUSED ones

    def __post_init__(self):
        check_types(self)
        check_range(self, 0, math.inf, "stage1_records", "stage2_records", "context")
        if self.epochs <= 0:
            raise ConfigError(f"epochs is {self.epochs:g}: use a number above 0.")


def read_recipe(name: str | Path) -> Recipe:
    """A recipe by the name of one that comes with the package ("smol", "paper"), or from a TOML file.

    Raises ConfigError for a file that is missing, broken, or says something unknown.
    """
    shipped = package_files("minivllava") / "recipes"
    names = sorted(file.name.removesuffix(".toml") for file in shipped.iterdir() if file.name.endswith(".toml"))
    file = shipped / f"{name}.toml" if name in names else Path(name)
    if not file.is_file():
        raise ConfigError(f"There is no recipe {str(name)!r}; name a TOML file, or one of {', '.join(names)}.")
    try:
        return from_dict(Recipe, tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{file} is no recipe: {error}") from error


def stage_records(
    recipe: Recipe, stage: str, root: str | Path, seed: int, missing_media: str = "error", skip_broken: bool = False
):
    """(records, files that are not there, what is wrong with records that break the format) of "stage1" or "stage2".

    missing_media: "error", "skip" their records, or "keep" them, to plan before the media is there. skip_broken: leaves
    records out that break the format. Raises DataError, MediaError naming records and files. In records without files
    <image> and <video> are words, as they are to the original.
    """
    records, broken = read_records([Path(root) / file for file in getattr(recipe, stage)], root, words=True)
    if not skip_broken:
        refuse_broken(broken, "Mend them, or leave them out with --skip-broken.")
    missing = [path for path in unique_files(records) if not Path(path).is_file()]
    if missing and missing_media == "error":
        shown = "".join(f"\n  {path}" for path in missing[:8])
        raise MediaError(
            f"{len(missing)} files of {stage} are missing under {root}, such as:{shown}\nGet them, or leave their "
            "records out with --skip-missing."
        )
    if missing and missing_media == "skip":
        gone = set(missing)
        records = records.filter(lambda row: not gone.intersection(row["visuals"]))
    wanted = getattr(recipe, f"{stage}_records")
    if wanted and wanted < len(records):
        records = records.select(np.sort(np.random.default_rng(seed).permutation(len(records))[:wanted]))
    if not len(records):
        raise DataError(f"No record of {stage} is left: none has its files under {root}.")
    return records, missing, broken


def recipe_preset(recipe: Recipe, changes: tuple[str, ...] = (), lora: bool = False) -> Preset:
    """The preset with what the recipe changes, then LoRA, then `changes`. Raises ConfigError for a field that a recipe
    has no use for."""
    for field in map(_field, (*recipe.change, *changes)):
        reason = next((why for unused, why in UNUSED.items() if re.match(unused, field)), None)
        if reason:
            raise ConfigError(f"{field} would change nothing in a recipe, since {reason}: leave it out.")
    base = override(preset(recipe.preset), *recipe.change)
    if lora:
        base = replace(base, stage2=lora_recipe(base.stage2))
    return override(base, *changes)


def stage_training(
    recipe: Recipe, base: Preset, stage: str, records: int, changes: tuple[str, ...] = ()
) -> TrainingConfig:
    """How "stage1" or "stage2" trains: for the recipe's epochs over so many records, or for the steps that are set."""
    training = getattr(base, stage)
    steps_are_set = f"{stage}.steps" in map(_field, (*recipe.change, *changes))
    made = scheduled(training, records, recipe.epochs)
    return replace(made, steps=training.steps) if steps_are_set else made


def _field(change: str) -> str:
    return change.partition("=")[0].strip()


def train_recipe(
    recipe: Recipe, root: str | Path, folder: str | Path, changes: tuple[str, ...] = (), lora: bool = False,
    skip_missing: bool = False, skip_broken: bool = False, device: str | None = None, progress: bool = True,
) -> tuple[VideoLLaVA, list[str]]:  # fmt: skip
    """Stage 1 and stage 2 on a recipe's data. Returns the model, and what was left out: missing files, broken records.

    A run that was stopped continues when it is given the same again. Raises ConfigError for numbers that no run can
    have, MediaError when training comes to a file that cannot be decoded, naming it.
    """
    base = recipe_preset(recipe, tuple(changes), lora)
    check_precision(base, ("stage1", "stage2"))
    root = as_before(folder, "root", root)
    stages, left_out = {}, []
    for name in ("stage1", "stage2"):
        training = getattr(base, name)
        missing_media = "skip" if skip_missing else "error"
        records, missing, broken = stage_records(recipe, name, root, training.seed, missing_media, skip_broken)
        stages[name] = records, stage_training(recipe, base, name, len(records), tuple(changes))
        left_out += missing + broken
    described = {"recipe": to_dict(recipe), "root": root, "model": to_dict(base.model)}
    described |= {name: to_dict(training) | {"records": len(records)} for name, (records, training) in stages.items()}
    options = {"cached": False, "device": device, "progress": progress}
    with running(folder, described) as run:
        if not run.done("stage1"):
            _train_stage1(run, recipe, base, stages, options)
        if not run.done("model"):
            _train_stage2(run, recipe, stages, options)
    return load_vllava(run.folder / "model"), left_out


def _train_stage1(run: Run, recipe: Recipe, base: Preset, stages: dict, options: dict):
    """From the parts to the checkpoint of stage 1; its model is gone then: two would need twice the memory."""
    model = _parts(recipe, base)
    (records, training), (records2, training2) = stages["stage1"], stages["stage2"]
    cut = cut_after(recipe, model)
    check_recomputation(model.language_model, training2)  # what stage 2 cannot do is said before stage 1 takes days
    check_conversations(records2, model.tokenizer, model.config, cut)
    train = partial(stage1, model, records, training, cut=cut, **options)
    run.step("stage1", train, model.save_pretrained)


def _train_stage2(run: Run, recipe: Recipe, stages: dict, options: dict):
    """From the files of stage 1, as a run that continues: what training wrapped its model in stays behind."""
    model = load_vllava(run.folder / "stage1")
    records, training = stages["stage2"]
    train = partial(stage2, model, records, training, cut=cut_after(recipe, model), **options)
    run.step("model", train, model.save_pretrained)


def cut_after(recipe: Recipe, model: VideoLLaVA) -> int:
    """Tokens after which a record is cut."""
    room = model.config.language.context
    return min(recipe.context or room, room)


def _parts(recipe: Recipe, base: Preset) -> VideoLLaVA:
    language, tokenizer = load_any_language(recipe.language_model)
    image, video = (load_encoder(getattr(recipe, f"{kind}_encoder"), kind) for kind in ("image", "video"))
    return assemble_backbones(base.model, image, video, language, tokenizer)
