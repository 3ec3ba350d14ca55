"""What retrieval and classification are measured on: the embedded world's test scenes, or pairs of your own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from minivllava.data.captions import at_place, caption
from minivllava.data.world import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    generator,
    sample_scene,
)
from minivllava.errors import DataError, short_reason
from minivllava.evaluation.predictions import Problems, Row, read_rows
from minivllava.overrides import from_dict
from minivllava.run_config import WorldConfig

FOLDERS = {"image": ("images", ".png"), "video": ("videos", ".mp4"), "depth": ("depth", ".png")}
WORDS = 2  # stream of a scene's generator: neither its pixels nor its questions


@dataclass(frozen=True)
class Labels:
    """A classification task: classes, prompts with {} for their names, and the class of some files by index."""

    classes: Sequence[str]
    templates: Sequence[str]
    of: dict[int, int]


@dataclass
class Pairs:
    """Files of one modality, captions and the file that each describes, and classification tasks by name."""

    files: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    tasks: dict[str, Labels] = field(default_factory=dict)


def world_pairs(world: str | Path, modality: str = "image") -> Pairs:
    """The test scenes of a folder that `build_world` made, each with a caption drawn for it.

    Scenes of one thing are also to be classified: by colour, shape and place in images and depth maps, by
    colour, shape and motion in clips; a depth map has no colour. Raises DataError for a folder that is no such world,
    or has no test scenes.
    """
    file = Path(world) / "config.json"
    try:
        config = from_dict(WorldConfig, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ConfigError is a ValueError, and so is broken JSON
        raise DataError(f"{file} describes no world ({short_reason(error)}): name a folder that holds one.") from error
    if not config.test:
        raise DataError(f"{world} holds no test scenes: make a world with some.")
    folder, suffix = FOLDERS[modality]
    clip = modality == "video"
    pairs = Pairs()
    alone: dict[int, Thing] = {}
    for index in range(config.test):
        scene: Scene = sample_scene(config.seed, "test", index, clip, config.frames)
        pairs.files.append(str(Path(world) / folder / "test" / f"{index:06d}{suffix}"))
        pairs.captions.append(caption(scene, generator(config.seed, "test", index, clip, WORDS)))
        pairs.owners.append(index)
        if len(scene.things) == 1:
            alone[index] = scene.things[0]
    ends = tuple(DIRECTIONS) if clip else tuple(map(at_place, PLACES))
    classes = {"colour": COLOURS, "shape": SHAPES} | ({"motion": MOTIONS} if clip else {"place": ends})
    prompts = {
        "colour": [f"a {size} {{}} {shape} {end}" for size, shape, end in product(SIZES, SHAPES, ends)],
        "shape": [f"a {size} {colour} {{}} {end}" for size, colour, end in product(SIZES, COLOURS, ends)],
        "motion": [f"a {size} {colour} {shape} {{}}" for size, colour, shape in product(SIZES, COLOURS, SHAPES)],
    }
    prompts["place"] = prompts["motion"]
    if modality == "depth":
        del classes["colour"]
    pairs.tasks = {
        name: Labels(names, prompts[name], {i: names.index(_class(thing, name)) for i, thing in alone.items()})
        for name, names in classes.items()
        if alone
    }
    return pairs


def _class(thing: Thing, name: str) -> str:
    """What a thing is in one respect, in the words of captions."""
    return at_place(thing.place) if name == "place" else getattr(thing, name)


def read_pairs(
    file: str | Path, modality: str, media: str | Path | None = None, templates: Sequence[str] = ()
) -> Pairs:
    """Pairs of your own: JSON lines or a list of {"image" (or the modality's name): path, "caption": text or texts}.

    Records in LLaVA's format will do too: their last answer is the caption. A "label" makes it a classification
    task among all labels of the file. A file that several records name has several captions, but one label. Paths
    start from `media`, by default the JSON's folder. Raises DataError with file and line for records that are neither.
    """
    problems = Problems()
    root = Path(media) if media is not None else Path(file).parent
    pairs = Pairs()
    labels: dict[int, str] = {}
    number: dict[str, int] = {}
    for row in read_rows(file, problems):
        path = row.values.get(modality)
        path = path[0] if isinstance(path, list) and len(path) == 1 else path
        said, label = _captions(row), row.values.get("label")
        if not isinstance(path, str) or said is None or not (said or isinstance(label, str)):
            problems.add(f"{row.where}: a field {modality!r} with a path is needed, and 'caption' or 'label' with text")
            continue
        owner = number.setdefault(str(root / path), len(number))
        pairs.captions += said
        pairs.owners += [owner] * len(said)
        if label is not None and not isinstance(label, str):
            problems.add(f"{row.where}: label holds {json.dumps(label)[:40]}, no text")
        elif label is not None and labels.setdefault(owner, label) != label:
            problems.add(f"{row.where}: {path} has the label {label!r} here, and {labels[owner]!r} before")
    problems.check()
    pairs.files = list(number)
    owners = set(pairs.owners)
    without = [name for name, owner in number.items() if owner not in owners]
    if pairs.captions and without:
        raise DataError(f"{file}: {without[0]} has no caption, though others have: give all of them one, or none.")
    if labels:
        classes = sorted(set(labels.values()))
        of = {owner: classes.index(label) for owner, label in labels.items()}
        pairs.tasks["label"] = Labels(classes, templates, of)
    return pairs


def _captions(row: Row) -> list[str] | None:
    """A record's captions; None if they are no text."""
    turns = row.values.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        said = turns[-1].get("value")
    else:
        said = row.values.get("caption", row.values.get("captions", []))
    said = [said] if isinstance(said, str) else said
    return said if isinstance(said, list) and all(isinstance(text, str) for text in said) else None
