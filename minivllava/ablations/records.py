"""The records of a cell: what it learns from, what it is asked, in colour or in depth."""

import json
from dataclasses import replace
from pathlib import Path

from minivllava.ablations.settings import Mixture, align_world, train_world
from minivllava.data.build import build_world
from minivllava.data.questions import QUESTIONS
from minivllava.data.records import asked_kind, load_records, records_of
from minivllava.data.world import COLOURS, generator, sample_scene
from minivllava.run_config import TrainingConfig, WorldConfig

POPE = ("existence/random", "existence/popular", "existence/adversarial")
TRIES = 8  # draws of a question before a scene is given up


class Data:
    """A world's records for stages 1 and 2 and for the tests; made once and shared by all cells on it."""

    def __init__(self, world: WorldConfig, progress: bool = True):
        self.world = world
        folder = build_world(train_world(world), progress=progress)
        self.stage1, self.stage2, self.test = (load_records(folder / f"{n}.json") for n in ("stage1", "stage2", "test"))
        self.pope = records_of(pope_records(world), folder)

    def chosen(self, stage: str, mixture: Mixture):
        """The records of "stage1" or "stage2" that a mixture takes: always the same scenes, in the same order.

        A smaller share is part of a larger one. Text-only conversations come in the share of all the rest.
        """
        records = getattr(self, stage)
        sizes = {"image": self.world.images, "video": self.world.clips}
        sizes["text"] = sum(sizes.values()) // 19
        shares = {"image": mixture.images, "video": mixture.clips, "text": mixture_share(mixture, self.world)}
        kept = []
        for number, (name, images, videos) in enumerate(
            zip(records["id"], records["images"], records["videos"], strict=True)
        ):
            kind = asked_kind(images, videos)
            if int(name.rsplit("-", 1)[-1]) < round(shares[kind] * sizes[kind]):
                kept.append(number)
        return records.select(kept)

    def everything(self):
        """All records that hold an image or clip, so that features are computed once for every arm."""
        from datasets import concatenate_datasets

        return concatenate_datasets([self.stage1, self.test, self.pope])


def mixture_share(mixture: Mixture, world: WorldConfig) -> float:
    """The share of a world's training scenes that a mixture takes."""
    return (mixture.images * world.images + mixture.clips * world.clips) / (world.images + world.clips)


def scaled_steps(recipe: TrainingConfig, mixture: Mixture, world: WorldConfig) -> int:
    """The steps for what a mixture takes: each record is seen as often as by the arm that uses all."""
    return max(1, round(recipe.steps * mixture.budget * mixture_share(mixture, world)))


def pope_records(world: WorldConfig) -> list[dict]:
    """Existence questions about every test image in POPE's three settings, where the scene allows each."""
    records = []
    for index in range(world.test):
        scene = sample_scene(world.seed, "test", index)
        for kind in POPE:
            for attempt in range(TRIES):
                rng = generator(world.seed, "test", index, False, stream=2 + attempt)
                turn = QUESTIONS[kind](scene, rng, None)
                if turn:
                    path = f"images/test/{index:06d}.png"
                    records.append(_record(f"pope-{index:06d}-{kind}", path, [(turn.question, turn.answer)], [kind]))
                    break
    return records


class DepthData:
    """Depth maps with words: for binding, for tuning, for tests. Questions of colour are left out.

    tune, test: records whose image is the depth map. test_images: the same questions about the images.
    """

    def __init__(self, world: WorldConfig, progress: bool = True):
        folder = build_world(depth_world(world), progress=progress)
        tune, test = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("stage2", "test"))
        tune, test = ([r for record in records if (r := without_colour(record))] for records in (tune, test))
        self.tune = _depth_records(tune, folder)
        self.test = _depth_records(test, folder)
        self.test_images = records_of(test, folder)


def depth_world(world: WorldConfig) -> WorldConfig:
    """The images of a world with their depth maps, for tuning and tests."""
    return replace(train_world(world), clips=0, depth=True)


def depth_captions(world: WorldConfig, progress: bool = True):
    """Depth maps with captions, in families: what binds depth to text."""
    folder = build_world(align_world(world, depth=True), progress=progress)
    records = json.loads((folder / "align_images.json").read_text(encoding="utf-8"))
    return _depth_records(records, folder)


def without_colour(record: dict) -> dict | None:
    """A record of one image with only the turns that name no colour; None if no turn is left."""
    if "image" not in record:
        return None
    talk = record["conversations"]
    kept = [
        (talk[2 * i]["value"].rsplit("\n", 1)[-1], talk[2 * i + 1]["value"], kind)
        for i, kind in enumerate(record["types"])
        if not _says_colour(talk[2 * i]["value"]) and not _says_colour(talk[2 * i + 1]["value"])
    ]
    if not kept:
        return None
    turns, kinds = [turn[:2] for turn in kept], [turn[2] for turn in kept]
    return _record(record["id"], record["image"], turns, kinds) | {"depth": record.get("depth")}


def _says_colour(text: str) -> bool:
    return any(word in text.lower() for word in ("colour", *COLOURS))


def _record(name: str, path: str, turns: list[tuple[str, str]], kinds: list[str]) -> dict:
    """One conversation about an image in LLaVA's format."""
    spoken = [
        {"from": speaker, "value": value}
        for turn in turns
        for speaker, value in zip(("human", "gpt"), turn, strict=True)
    ]
    spoken[0]["value"] = "<image>\n" + spoken[0]["value"]
    return {"id": name, "image": path, "conversations": spoken, "types": kinds}


def _depth_records(records: list[dict], folder: Path):
    """Those that have a depth map, which stands in the place of the image."""
    return records_of([record | {"image": record["depth"]} for record in records if record.get("depth")], folder)
