"""What a study will cost, before it runs: steps, and rough minutes and memory of every cell.

Minutes come from counted FLOPs and the rate at which this machine does them in a training step of the preset's own
language model, timed for a second; where cells of an arm are finished, the median of what they took, since the first
one may also have trained parts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from minivllava.ablations.cell import run_cell, tuning_steps
from minivllava.ablations.parts import Parts, part_key
from minivllava.ablations.records import mixture_share, scaled_steps
from minivllava.ablations.runner import grid, read_cell
from minivllava.ablations.settings import Settings, base_settings, cell_key, digest
from minivllava.ablations.study import load_study, study_names
from minivllava.config import LanguageConfig
from minivllava.flops import decoder_flops, encoder_depth, encoder_flops, layer_weights, text_encoder_flops
from minivllava.models.language import LanguageModel

CAPTION, CONVERSATION, QUESTION = 25, 110, 20  # tokens of words in a record of stage 1, of stage 2, of a test
ANSWERING = 1.5  # what a question costs, in times its prompt's FLOPs: each answer's tokens come one by one
TRAINING = 1.3  # what a step costs, in times the language model's FLOPs: padding, projector, optimiser
SECONDS_A_FILE = 0.004  # to decode
BASE_GIB = 1.1  # Python, torch, records, memory-mapped features


@dataclass(frozen=True)
class ArmPlan:
    """What one arm will take. `minutes` and `gib` are of one cell."""

    arm: str
    label: str
    steps: tuple[int, ...]  # of stage 1, of stage 2, or of tuning on depth
    cells: int
    finished: int
    minutes: float
    gib: float


@dataclass(frozen=True)
class StudyPlan:
    """What a study will take. `parts`: minutes of each part that its arms start from and that is to be trained."""

    name: str
    title: str
    arms: tuple[ArmPlan, ...]
    parts: dict[str, float]

    @property
    def minutes(self) -> float:
        """Of all that is left to do, by one process."""
        return sum(self.parts.values()) + sum(arm.minutes * (arm.cells - arm.finished) for arm in self.arms)

    @property
    def gib(self) -> float:
        """Of one process."""
        return max(arm.gib for arm in self.arms)


def plan_study(
    study, settings: Settings, seeds: int, parts: Parts, rate: float, known: dict[str, dict], counted: set[str]
) -> StudyPlan:
    """A plan. rate: FLOPs a second, as `measured_rate` gives. known: finished cells beside those in the store.

    counted: cells and parts of studies planned before, which are not counted again; this one's are added.
    """
    labels = {arm.name: arm.label or arm.name for arm in study.arms}
    plans, missing = [], {}
    for arm, its in study.settings(settings).items():
        parts.check(its)
        cells = {cell.key: cell.seed for cell in grid({arm: its}, seeds, parts.fingerprint)}
        keys = cells.keys() - counted
        counted |= keys
        done = [cell for key in keys if (cell := known.get(key) or read_cell(parts.store, key)) is not None]
        minutes = median(c["seconds"] for c in done) / 60 if done else cell_flops(its) / rate / 60
        memory = max(c["peak_gib"] for c in done) if done else cell_memory(its)
        plans.append(ArmPlan(arm, labels[arm], cell_steps(its), len(keys), len(done), minutes, memory))
        missing_seeds = [cells[key] for key in sorted(keys - {cell["key"] for cell in done})]
        if missing_seeds:
            costs = {name: flops / rate / 60 for name, flops in needed_parts(its, parts, missing_seeds).items()}
            costs |= {} if done else {f"features-{_features_key(its)}": _features_minutes(its, rate)}
            missing |= {name: cost for name, cost in costs.items() if name not in counted}
            counted.update(costs)
    return StudyPlan(study.name, study.title, tuple(plans), missing)


def grid_costs(preset: str, parts: Parts, known: dict[str, dict], run: bool = False) -> dict:
    """For `minivllava bench`: how many cells all studies have, what one takes and what all take here, and what the
    known ones took on the machine that computed them (machine -> how many, and the median of their minutes).

    Everything is estimated except the known cells; with `run` one cell is computed and timed. Its features may be
    cached, as they are for every arm except the first of an encoder.
    """
    settings, seeds = base_settings(preset), 5  # as many as `minivllava ablate` takes
    rate = measured_rate(settings.model.language, parts.device)
    counted: set[str] = set()
    plans = [plan_study(load_study(name), settings, seeds, parts, rate, {}, counted) for name in study_names()]
    took: dict[str, list[float]] = {}
    for cell in known.values():
        took.setdefault(cell["made_with"]["machine"], []).append(cell["seconds"] / 60)
    costs = {
        "cells of all studies": sum(arm.cells for plan in plans for arm in plan.arms),
        "minutes of one cell, estimated": round(cell_flops(settings) / rate / 60, 2),
        "minutes of all by one process, estimated": round(
            sum(arm.minutes * arm.cells for plan in plans for arm in plan.arms)
            + sum(sum(plan.parts.values()) for plan in plans)
        ),
        "cells of data/results, and their minutes": {
            machine: [len(minutes), round(median(minutes), 2)] for machine, minutes in sorted(took.items())
        },
    }
    if run:
        costs["minutes of one cell, computed"] = round(run_cell(settings, 0, parts)["seconds"] / 60, 2)
    return {f"ablations, {preset}, {seeds} seeds: {name}": value for name, value in costs.items()}


def cell_steps(settings: Settings) -> tuple[int, ...]:
    """Steps of stage 1 and stage 2, of those that are not left out; in a depth cell those of its tuning."""
    if settings.depth:
        return (tuning_steps(settings),) if settings.depth_tuning else ()
    stages = ((settings.stage1, settings.data1), (settings.stage2, settings.data2))
    return tuple(scaled_steps(recipe, data, settings.world) for recipe, data in stages if data.budget)


def measured_rate(language: LanguageConfig, device: torch.device) -> float:
    """FLOPs a second in training steps of a language model, 16 rows of 160 tokens."""
    rows, length = 16, 160
    model = LanguageModel(language).to(device)
    embeddings = torch.zeros(rows, length, language.width, device=device)
    times = []
    for _ in range(3):
        began, worked = time.perf_counter(), time.process_time()
        model(embeddings).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall, work = time.perf_counter() - began, time.process_time() - worked
        # on a busy machine, the time that it would take with nothing else to do
        times.append(min(wall, work / torch.get_num_threads()) if device.type == "cpu" else wall)
    return rows * _training(language, length) / min(times)


def cell_flops(settings: Settings) -> float:
    """FLOPs of training and scoring one cell, from cached features."""
    language, world = settings.model.language, settings.world
    if settings.depth:
        asked = world.test * world.questions
        tuned = tuning_steps(settings) * settings.stage2.batch_size if settings.depth_tuning else 0
        length = settings.model.visual_tokens("image") + CONVERSATION
        return TRAINING * tuned * _training(language, length) + asked * _answer(settings, "image")
    flops = 0.0
    for recipe, data, words, backward in (
        (settings.stage1, settings.data1, CAPTION, 1),  # the frozen language model has no gradient of its own
        (settings.stage2, settings.data2, CONVERSATION, 2),
    ):
        if data.budget:
            samples = scaled_steps(recipe, data, world) * recipe.batch_size
            clips = data.clips * world.clips / (mixture_share(data, world) * (world.images + world.clips))
            for kind, part in (("image", 1 - clips), ("video", clips)):
                length = settings.model.visual_tokens(kind, settings.model.video.frames) + words
                flops += TRAINING * samples * part * _training(language, length, backward)
    asked = world.test * world.questions
    flops += (asked + 3 * world.test) * _answer(settings, "image") + asked * _answer(settings, "video")
    if settings.baselines:
        flops += 2 * asked * _answer(settings, "video") + 2 * (asked + world.test) * _answer(settings, "blind")
    return flops


def cell_memory(settings: Settings) -> float:
    """GiB of one process: weights, AdamW's moments, and what a step keeps for its gradients."""
    language, batch = settings.model.language, settings.stage2.batch_size // settings.stage2.accumulation
    length = settings.model.visual_tokens("video", settings.model.video.frames) + CONVERSATION
    weights = 16 * (language.layers * layer_weights(language) + 2 * language.vocab_size * language.width)
    kept = 4 * batch * length * language.layers * (14 * language.width + 4 * language.mlp_width)
    return BASE_GIB + (weights + kept) / 2**30


def needed_parts(settings: Settings, parts: Parts, seeds: Sequence[int]) -> dict[str, float]:
    """FLOPs of the parts that cells of these seeds start from and that are not trained yet, by folder name."""
    model, recipe = settings.model, settings.align_image
    images = recipe.steps * recipe.batch_size
    image, clip = (3 * encoder_flops(c, t, c.layers) for c, t in ((model.image, 1), (model.video, model.video.frames)))
    words = 3 * text_encoder_flops(model.text, 40)
    found: dict[str, float] = {}
    if settings.language_model == "trained":
        length = 2 * CONVERSATION
        documents = settings.language.steps * settings.language.batch_size
        found["language"] = documents * _training(model.language, length)
    if settings.encoders == "trained":
        clips = settings.align_video.steps * settings.align_video.batch_size
        found["languagebind"] = images * (image + words) + clips * clip
    if settings.image_encoder == "contrastive":
        found["contrastive"] = images * (image + words)
    if settings.image_encoder == "mae":
        found["mae"] = images * image * 0.5  # a quarter of the patches, and the decoder
    if settings.depth == "bound":
        found["depth"] = images * (image + words / 3)
    if settings.depth == "mae":
        found["depth-mae"] = images * image * 0.5
    found = {f"{kind}-{part_key(kind, settings, parts.fingerprint)}": cost for kind, cost in found.items()}
    found = {name: cost for name, cost in found.items() if not (parts.store / "parts" / name).exists()}
    if settings.depth:
        plain = replace(settings, depth="", depth_tuning=0.0, baselines=False)
        for key in (cell_key(plain, seed, parts.fingerprint) for seed in seeds):
            if not (parts.store / "models" / key).exists():
                found[f"model-{key}"] = cell_flops(plain)
    return found


def _features_key(settings: Settings) -> str:
    """Arms with the same one share their frozen features."""
    model = settings.model
    layer = (model.select_layer, model.keep_cls_image, model.keep_cls_video, model.projector == "pooling")
    source = (settings.image_encoder, settings.encoders, settings.temporal, settings.depth)
    return digest(model.image, model.video, settings.world, layer, source)


def _features_minutes(settings: Settings, rate: float) -> float:
    """Minutes that decoding every image and clip of the world once, and encoding it, takes."""
    model, world = settings.model, settings.world
    images, clips = world.images + world.test, 0 if settings.depth else world.clips + world.test
    image, clip = (
        encoder_flops(config, frames, encoder_depth(config, model.select_layer))
        for config, frames in ((model.image, 1), (model.video, model.video.frames))
    )
    decoding = SECONDS_A_FILE * (images + clips * world.frames / 15)
    return (decoding + (images * image + clips * clip) / rate) / 60


def _answer(settings: Settings, kind: str) -> float:
    """FLOPs of answering one question."""
    visual = 0 if kind == "blind" else settings.model.visual_tokens(kind, settings.model.video.frames)
    return ANSWERING * decoder_flops(settings.model.language, visual + QUESTION, 1)


def _training(language: LanguageConfig, length: float, backward: int = 2) -> float:
    """FLOPs of a training step's forward and backward pass for one sequence, the few logits not counted."""
    return decoder_flops(language, length, 0, backward, attention_backward=2)
