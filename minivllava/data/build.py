"""Writes the embedded world to disk: PNG, H.264 MP4 and LLaVA-format JSON, as real data comes.

    shapes-0123456789/
        images/SPLIT/000000.png    videos/SPLIT/000000.mp4    depth/SPLIT/000000.png (only with `depth`)
        text.json                  text-only conversations, for language pre-training
        align_images.json          captions in families: a scene and three siblings that differ in one thing
        align_clips.json
        stage1.json                one caption for each training scene
        stage2.json                several questions on each, and a few text-only conversations
        validation.json  test.json  compositional.json    one question a record
        config.json                what made all this

The folder's name is a hash of the configuration, and the same configuration gives the same bytes. It appears
under its name only once it is complete.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from minivllava.data.dialogue import OFTEN_SEEN, turns
from minivllava.data.questions import Turn, describe
from minivllava.data.render import render, render_depth
from minivllava.data.siblings import FAMILY, sample_family
from minivllava.data.text_corpus import text_document
from minivllava.data.world import HELD_OUT, Scene, generator, sample_scene
from minivllava.files import remove_abandoned
from minivllava.run_config import WorldConfig

VERSION = 2  # raise it when the world's files change: old folders are then not reused
FILES = ("text", "align_images", "align_clips", "stage1", "stage2", "validation", "test", "compositional")
Records = dict[str, list[dict]]  # records by the file they go to


def evaluation_only(config: WorldConfig) -> WorldConfig:
    """The same held-out splits with just enough training scenes to know the commonest answers."""
    few = {"images": min(500, config.images), "clips": min(500, config.clips), "validation": 0}
    return replace(config, align_images=0, align_clips=0, text_documents=0, **few)


@dataclass(frozen=True)
class _Job:
    """One scene, family or text-only conversation to make."""

    split: str
    index: int
    clip: bool = False


def cache_dir() -> Path:
    """Where things made on demand are kept: $MINIVLLAVA_CACHE, or ~/.cache/minivllava."""
    return Path(os.environ.get("MINIVLLAVA_CACHE") or Path.home() / ".cache" / "minivllava")


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_folder(config: WorldConfig, root: str | Path | None = None) -> Path:
    """The folder that `build_world` makes for this configuration, under `root` (default: the cache)."""
    key = json.dumps([VERSION, asdict(config)], sort_keys=True)
    return Path(root or cache_dir()) / f"shapes-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def build_world(
    config: WorldConfig, root: str | Path | None = None, workers: int | None = None, progress: bool = True
) -> Path:
    """Make the world, unless it is there already, and return its folder.

    workers: processes, by default one for each core. An interrupted build leaves nothing under that name, and what
    a killed one leaves beside it is removed by one on another day; of two builds at once, the first to end counts.
    """
    folder = world_folder(config, root)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent, ".shapes-*")
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    unfinished.chmod(0o755)
    try:
        _write(config, unfinished, workers or cores(), progress)
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(config: WorldConfig, folder: Path, workers: int, progress: bool) -> None:
    from tqdm.auto import tqdm

    jobs = list(_jobs(config))
    for kind in ("images", "videos", "depth"):
        for split in {job.split for job in jobs}:
            (folder / kind / split).mkdir(parents=True)
    files: Records = {name: [] for name in FILES}
    made = _in_parallel(partial(_make, config, folder), jobs, workers)
    for records in tqdm(made, "making the world", len(jobs), unit="scene", disable=not progress, leave=False):
        for name, some in records.items():
            files[name] += some
    rng = np.random.default_rng(config.seed)
    for name, records in files.items():
        if name in ("stage1", "stage2"):  # images, clips and text mixed
            records = [records[i] for i in rng.permutation(len(records))]
        (folder / f"{name}.json").write_text(json.dumps(records, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    for empty in sorted(folder.glob("*/**"), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()


def _jobs(config: WorldConfig) -> Iterator[_Job]:
    scenes = config.images + config.clips
    yield from (_Job("text", i) for i in range(config.text_documents))
    yield from (_Job("train-text", i) for i in range(scenes // 19))  # 1 in 20 of stage 2
    for split, images, clips in (
        ("align", config.align_images // FAMILY, config.align_clips // FAMILY),
        ("train", config.images, config.clips),
        ("validation", config.validation, config.validation),
        ("test", config.test, config.test),
        ("compositional", config.compositional, config.compositional),
    ):
        yield from (_Job(split, i) for i in range(images))
        yield from (_Job(split, i, clip=True) for i in range(clips))


def _in_parallel(make, jobs: list[_Job], workers: int) -> Iterable[Records]:
    """`make` of each job in order, in `workers` processes; forked on Linux, which needs no main guard."""
    if workers <= 1:
        yield from map(make, jobs)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap(make, jobs, chunksize=32)


def _make(config: WorldConfig, folder: Path, job: _Job) -> Records:
    """Write the media of one job and return its records."""
    rng = generator(config.seed, job.split, job.index, job.clip, stream=1)
    name = f"{job.split}-{'clip' if job.clip else 'image'}-{job.index:06d}"
    if job.split in ("text", "train-text"):
        lists = config.lists if job.split == "text" else 0.0
        record = _record(f"{job.split}-{job.index:06d}", {}, text_document(rng, lists))
        return {"text" if job.split == "text" else "stage2": [record]}

    if job.split == "align":
        family = sample_family(config.seed, job.index, job.clip, config.frames)
        records = [
            _record(
                f"{name}-{i}",
                _write_media(config, folder, job.split, FAMILY * job.index + i, scene),
                [describe(scene, rng)],
            )
            | {"family": job.index}
            for i, scene in enumerate(family)
        ]
        return {"align_clips" if job.clip else "align_images": records}

    scene = sample_scene(config.seed, job.split, job.index, job.clip, config.frames)
    media = _write_media(config, folder, job.split, job.index, scene)
    if job.split == "train":
        conversation = turns(scene, rng, max(1, config.turns * len(scene.things) // 2), often=OFTEN_SEEN)
        if rng.random() < 0.1:  # at the end, since a caption answers every later question
            conversation[-1] = describe(scene, rng)
        return {
            "stage1": [_record(name, media, [describe(scene, rng)])],
            "stage2": [_record(name, media, conversation)],
        }
    held_out = [thing for thing in scene.things if thing.pair in HELD_OUT]
    focus = held_out[0] if held_out else None
    asked = turns(scene, rng, config.questions, focus, conversation=False)
    return {job.split: [_record(f"{name}-{i}", media, [turn]) for i, turn in enumerate(asked)]}


def _write_media(config: WorldConfig, folder: Path, split: str, index: int, scene: Scene) -> dict[str, str]:
    """Write a scene as a file (and its depth map): {"image" or "video" (, "depth"): path from the folder}."""
    from minivllava.data.write_media import write_image, write_video

    if scene.is_clip:
        path = f"videos/{split}/{index:06d}.mp4"
        write_video(folder / path, render(scene, config.size), config.fps)
        return {"video": path}
    media = {"image": f"images/{split}/{index:06d}.png"}
    write_image(folder / media["image"], render(scene, config.size))
    if config.depth:
        media["depth"] = f"depth/{split}/{index:06d}.png"
        depth = render_depth(scene, config.size)
        write_image(folder / media["depth"], np.stack([depth] * 3, axis=-1))
    return media


def _record(name: str, media: dict[str, str], conversation: list[Turn]) -> dict:
    """One conversation in LLaVA's format; the placeholder comes before the first question."""
    placeholder = "".join(f"<{kind}>\n" for kind in media if kind != "depth")
    spoken = []
    for turn in conversation:
        spoken += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
    spoken[0]["value"] = placeholder + spoken[0]["value"]
    return {
        "id": name,
        **media,
        "conversations": spoken,
        "types": [turn.type for turn in conversation],
        "needs_order": [turn.needs_order for turn in conversation],
    }
