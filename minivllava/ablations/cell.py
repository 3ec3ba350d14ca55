"""One cell of a study's grid: a model trained with one arm's settings from one seed, and its scores."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import torch
from filelock import FileLock

from minivllava.ablations.parts import Parts
from minivllava.ablations.records import POPE, Data, DepthData, scaled_steps
from minivllava.ablations.settings import Settings, cell_key
from minivllava.checkpoints.storage import load_tensors, save_tensors, write_folder
from minivllava.data.dataset import Load
from minivllava.evaluation.evaluate import accuracy, evaluate, majority
from minivllava.evaluation.metrics import yes_no
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment, peak_memory
from minivllava.training.stages import stage1, stage2, visual_loader

CHECKPOINT_EVERY = 40  # steps: what an interrupted cell may lose


def run_cell(settings: Settings, seed: int, parts: Parts) -> dict:
    """Trains and scores one cell. Returns it as it is stored: JSON types.

    `key`, `seed`, `metrics` (name -> per cent), `n` (questions behind some of them), `baselines` (view ->
    metrics), `logs` (stage -> lines of the loss), `steps`, `seconds`, `peak_gib`, `parameters`, `made_with`.
    """
    began, earlier = time.perf_counter(), 0.0
    key = cell_key(settings, seed, parts.fingerprint)
    folder = parts.store / "unfinished" / key
    if settings.depth:
        scores, logs, model = _depth_cell(settings, seed, parts, folder)
    else:
        data = _data(settings.world, parts.progress)
        model = parts.model(settings, seed).to(parts.device)
        load = _shared_features(model, data.everything(), parts)
        training = time.perf_counter()
        logs = train_stages(model, settings, seed, data, load, folder, **parts.options)
        here = time.perf_counter() - training
        earlier = max(0.0, sum(line["seconds"] for log in logs.values() for line in log) - here)  # of a stopped study
        scores = _scores(model, data, load, settings.baselines, parts.progress)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "key": key,
        "seed": seed,
        **scores,
        "logs": {name: [[line["step"], round(line["loss"], 4)] for line in log] for name, log in logs.items()},
        "steps": {name: log[-1]["step"] for name, log in logs.items()},
        "seconds": round(time.perf_counter() - began + earlier, 1),
        "peak_gib": round(_peak(), 2),
        "parameters": {
            name: sum(p.numel() for p in getattr(model, name).parameters())
            for name in ("image_encoder", "video_encoder", "projector", "language_model")
        },
        "made_with": environment(),
    }


def train_stages(
    model: VideoLLaVA, settings: Settings, seed: int, data: Data, load: Load, folder: Path, device: str | None = None,
    progress: bool = True,
) -> dict[str, list[dict]]:  # fmt: skip
    """Both stages, in place, on what the settings take of the data. Returns their logs by name."""
    logs = {}
    for name, stage, recipe, mixture in (
        ("stage1", stage1, settings.stage1, settings.data1),
        ("stage2", stage2, settings.stage2, settings.data2),
    ):
        if mixture.budget:
            records = data.chosen(name, mixture)
            steps = scaled_steps(recipe, mixture, settings.world)
            recipe = replace(recipe, seed=seed, steps=steps, checkpoint_every=CHECKPOINT_EVERY)
            logs[name] = stage(model, records, recipe, folder / name, load=load, device=device, progress=progress)
    return logs


@lru_cache(maxsize=2)
def _data(world, progress: bool) -> Data:
    return Data(world, progress)


@lru_cache(maxsize=1)
def _depth_data(world, progress: bool) -> DepthData:
    return DepthData(world, progress)


def _shared_features(model: VideoLLaVA, records, parts: Parts) -> Load:
    """Features of all files, computed by whichever arm comes first; processes wait for it rather than repeat it."""
    lock = parts.store / "locks" / "features.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        return visual_loader(model, records, progress=parts.progress)


# scores


def _scores(model: VideoLLaVA, data: Data, load: Load, baselines: bool, progress: bool) -> dict:
    """`metrics`, `n` and `baselines` on the test questions and on POPE's."""

    def answers(view: str, **options) -> dict:
        told = evaluate(model, data.test, view, progress=progress, **options)
        return summary(told) | pope_summary(evaluate(model, data.pope, view, progress=progress, **options))

    scores = {"metrics": answers("model", load=load), "n": _counts(data.test, data.pope), "baselines": {}}
    if baselines:
        clips = data.test.select([number for number, videos in enumerate(data.test["videos"]) if videos])
        scores["baselines"] = {"blind": answers("blind")}
        for view in ("single frame", "shuffled frames"):
            scores["baselines"][view] = summary(evaluate(model, clips, view, progress=progress))
        commonest = majority(data.test, data.stage2), majority(data.pope, data.stage2)
        scores["baselines"]["majority"] = summary(commonest[0]) | pope_summary(commonest[1])
    return scores


def summary(predictions: Sequence[dict]) -> dict[str, float]:
    """Exact match in per cent: "image", "video", "order" (of frames), and each type, as "image/colour"."""
    found = {kind: accuracy(predictions, kind=kind)[0] for kind in ("image", "video")}
    found["order"] = accuracy(predictions, needs_order=True)[0]
    for kind, name in sorted({(p["kind"], p["type"]) for p in predictions}):
        found[f"{kind}/{name}"] = accuracy(predictions, kind=kind, type=name)[0]
    return {name: round(100 * share, 3) for name, share in found.items() if share is not None}


def pope_summary(predictions: Sequence[dict]) -> dict[str, float]:
    """POPE's figures in per cent: accuracy, F1 and yes-ratio of each split, and their means over the splits.

    What begins with "yes" is a yes and everything else a no; POPE's own script looks for a "no" instead
    (`benchmarks.pope.says_yes`). An F1 that is undefined, because no yes was right, counts as 0.
    """
    found: dict[str, float] = {}
    asked = {name.replace("existence", "pope"): [p for p in predictions if p["type"] == name] for name in POPE}
    splits = {name: some for name, some in asked.items() if some}
    for name, some in splits.items():
        figures = yes_no([p["answer"].lower().startswith("yes") for p in some], [p["truth"] == "yes" for p in some])
        found |= {name: figures["accuracy"], f"{name}/f1": figures["f1"] or 0.0, f"{name}/yes": figures["yes_ratio"]}
    if splits:
        found |= {f"pope{tail}": fmean(found[name + tail] for name in splits) for tail in ("", "/f1", "/yes")}
    return {name: round(value, 3) for name, value in found.items()}


def _counts(test, pope) -> dict[str, int]:
    kinds = {"image": test["images"], "video": test["videos"]}
    counts = {name: sum(bool(files) for files in column) for name, column in kinds.items()}
    return counts | {"order": sum(any(needs) for needs in test["needs_order"]), "pope": len(pope)}


# a further modality


def _depth_cell(settings: Settings, seed: int, parts: Parts, folder: Path) -> tuple[dict, dict, VideoLLaVA]:
    """A finished model whose image encoder gives way to one of depth maps; scores, logs, model."""
    data = _depth_data(settings.world, parts.progress)
    model, logs = _finished(settings, seed, parts, folder), {}
    if settings.depth != "image":
        model.image_encoder.load_state_dict(parts.depth_encoder(settings))
        model.freeze_encoders()
    model.to(parts.device)
    if settings.depth_tuning:
        recipe = replace(settings.stage2, seed=seed, steps=tuning_steps(settings))
        few = max(1, round(settings.depth_tuning * len(data.tune)))
        records = data.tune.select(range(few))
        load = _shared_features(model, data.tune, parts)
        logs["depth"] = stage2(model, records, recipe, folder / "depth", load=load, **parts.options)
    test = data.test_images if settings.depth == "image" else data.test
    views = {"model": evaluate(model, test, progress=parts.progress)}
    if settings.baselines:
        views |= {
            "blind": evaluate(model, test, "blind", progress=parts.progress),
            "majority": majority(test, data.tune),
        }
    found = {view: summary(told) for view, told in views.items()}
    found = {view: {"depth": scores.pop("image"), **scores} for view, scores in found.items()}
    return {"metrics": found.pop("model"), "n": {"depth": len(test)}, "baselines": found}, logs, model


def tuning_steps(settings: Settings) -> int:
    """Steps of tuning on depth: a share of stage 2."""
    return max(1, round(settings.depth_tuning * settings.stage2.steps))


def _finished(settings: Settings, seed: int, parts: Parts, folder: Path) -> VideoLLaVA:
    """The model that never saw depth, after both stages; one for each seed, kept, for all arms."""
    plain = replace(settings, depth="", depth_tuning=0.0, baselines=False)
    key = cell_key(plain, seed, parts.fingerprint)
    path = parts.store / "models" / key
    model = parts.model(plain, seed)
    (parts.store / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(parts.store / "locks" / f"model-{key}.lock"):
        if not path.exists():
            data = _data(plain.world, parts.progress)
            model.to(parts.device)
            load = _shared_features(model, data.everything(), parts)
            train_stages(model, plain, seed, data, load, folder / "before", **parts.options)
            learned = {n: t for n, t in model.state_dict().items() if not n.startswith(("image_enc", "video_enc"))}

            def write(new: Path):
                save_tensors(learned, new / "model.safetensors")
                (new / "model.json").write_text(json.dumps({"key": key, "seed": seed, "made_with": environment()}))

            write_folder(path, write)
    model.load_state_dict(load_tensors(path / "model.safetensors"), strict=False)
    return model


def _peak() -> float:
    """The most memory that this process has used so far, in GiB: the GPU's if there is one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory()
