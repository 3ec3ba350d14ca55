"""Shapes in Motion: the embedded world that stands in for the paper's millions of images and clips.

A scene holds one to three things on a canvas of side 1 (x to the right, y down). In a clip each thing moves,
grows, shrinks, blinks or stays still, over the whole clip or one after the other. Everything is drawn from a
seeded generator, and the distribution of clips is the same forwards and backwards in time: what moves left
moves right when reversed, and first and second change places. So frames without their order cannot tell
these opposites apart, and a model that names them has understood time. A frame that is known to be the first
is another matter: a path begins on the side that it leaves, as it must for shuffled frames to tell nothing.

Scenes are drawn here, turned into pixels in `render.py` and into words in `captions.py` and `questions.py`.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from minivllava.run_config import WorldConfig

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "moon")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
ACTIONS = (*DIRECTIONS, "grows", "shrinks", "blinks")
MOTIONS = (*ACTIONS, "stays still")
OPPOSITE = {
    "moves left": "moves right",
    "moves right": "moves left",
    "moves up": "moves down",
    "moves down": "moves up",
    "grows": "shrinks",
    "shrinks": "grows",
    "first": "second",
    "second": "first",
}

RADIUS = {"small": 0.13, "large": 0.20, "changing": 0.155}
SCALE = (0.60, 1.35)  # what grows goes from the first factor to the second, what shrinks back
BORDER, GAP, JITTER = 0.01, 0.03, 0.03
REACH = (0.30, 0.62)  # length of a path, in canvas sides

# 15 frames, because `linspace(0, 14, 8)` takes every second one exactly: the eight frames a model sees are
# then as symmetric in time as the clip. From 16 frames, rounding would give the order of time away.
FRAMES = WorldConfig.frames

# Never together in training: each colour once, each shape once or twice.
HELD_OUT = frozenset(
    {
        ("red", "triangle"),
        ("green", "ring"),
        ("blue", "circle"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("orange", "moon"),
        ("cyan", "triangle"),
        ("white", "circle"),
    }
)
PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)

# The first colour and shape are half as frequent again as the last, so that "popular" objects exist.
_COLOUR_WEIGHT = dict(zip(COLOURS, np.linspace(1.5, 1.0, len(COLOURS)), strict=True))
_SHAPE_WEIGHT = dict(zip(SHAPES, np.linspace(1.5, 1.0, len(SHAPES)), strict=True))
PAIR_WEIGHTS = np.array([_COLOUR_WEIGHT[c] * _SHAPE_WEIGHT[s] for c, s in PAIRS])
PAIR_WEIGHTS = PAIR_WEIGHTS / PAIR_WEIGHTS.sum()

SPLITS = ("train", "validation", "test", "compositional", "align", "text", "train-text")


class Track(NamedTuple):
    """Where a thing is in each frame: centre, radius (canvas sides) and visibility, each of shape (t,)."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Thing:
    """One object: what it is, where it is, and what it does in a clip."""

    shape: str
    colour: str
    size: str  # "small", "large", or "changing" for what grows or shrinks
    x: float  # centre, or middle of its path
    y: float
    z: float = 0.5  # nearness, 0 far to 1 near: seen in depth maps only
    motion: str = "stays still"
    phase: str = "all"  # the part of the clip it acts in: "all", "first" or "second" half
    reach: float = 0.0  # length of its path

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def acts(self) -> bool:
        return self.motion != "stays still"

    @property
    def moves(self) -> bool:
        return self.motion in DIRECTIONS

    @property
    def scales(self) -> bool:
        return self.motion in ("grows", "shrinks")

    @property
    def place(self) -> str | None:
        """Name of its cell in a 3 x 3 grid; None for what moves."""
        return None if self.moves else PLACES[3 * int(3 * self.y) + int(3 * self.x)]

    def track(self, frames: int) -> Track:
        """Its path through `frames` frames (1: an image)."""
        done = progress(self.phase, frames)
        x, y = np.full(frames, self.x), np.full(frames, self.y)
        radius = np.full(frames, RADIUS[self.size])
        visible = np.ones(frames, bool)
        if self.moves:
            right, down = DIRECTIONS[self.motion]
            x = x + right * self.reach * (done - 0.5)
            y = y + down * self.reach * (done - 0.5)
        elif self.scales:
            start, end = SCALE if self.motion == "grows" else SCALE[::-1]
            radius = radius * (start + (end - start) * done)
        elif self.motion == "blinks":
            turn = done * (2 if self.phase == "all" else 1) % 1  # half a clip: gone once, a whole clip: twice
            visible = (turn < 0.25) | (turn > 0.75)
        return Track(x, y, radius, visible)


@dataclass(frozen=True)
class Scene:
    """One to three things; `seed` makes the texture of the background, `frames` > 1 makes it a clip."""

    things: tuple[Thing, ...]
    seed: int
    frames: int = 1

    @property
    def is_clip(self) -> bool:
        return self.frames > 1

    @cached_property
    def events(self) -> tuple[Thing, ...]:
        """The things that act, in order of time."""
        return tuple(sorted((thing for thing in self.things if thing.acts), key=lambda thing: thing.phase))


@cache
def progress(phase: str, frames: int) -> np.ndarray:
    """Share of its motion a thing has done in each frame, (t,) from 0 to 1.

    Halves leave out the middle frame, or the middle two, so a first half reversed is a second half.
    """
    half = (frames - 1) // 2
    start = frames - half if phase == "second" else 0
    stop = half - 1 if phase == "first" else frames - 1
    return np.clip((np.arange(frames) - start) / max(stop - start, 1), 0, 1)


def reversed_in_time(scene: Scene) -> Scene:
    """The scene of the same clip played backwards."""
    return replace(
        scene,
        things=tuple(
            replace(
                thing,
                motion=OPPOSITE.get(thing.motion, thing.motion),
                phase=OPPOSITE.get(thing.phase, thing.phase),
            )
            for thing in scene.things
        ),
    )


def is_valid(scene: Scene) -> bool:
    """Whether all things differ, lie inside the canvas, and keep apart in every frame."""
    things = scene.things
    return (
        len({thing.pair for thing in things}) == len(things)
        and all(_inside(thing, scene.frames) for thing in things)
        and all(_apart(a, b, scene.frames) for i, a in enumerate(things) for b in things[:i])
    )


def _inside(thing: Thing, frames: int) -> bool:
    x, y, radius, _ = thing.track(frames)
    edge = radius + BORDER - 1e-9
    return bool(np.all((x >= edge) & (x <= 1 - edge) & (y >= edge) & (y <= 1 - edge)))


def _apart(a: Thing, b: Thing, frames: int) -> bool:
    frames = frames if a.acts or b.acts else 1
    a, b = a.track(frames), b.track(frames)
    return bool(np.all((a.x - b.x) ** 2 + (a.y - b.y) ** 2 >= (a.radius + b.radius + GAP) ** 2))


def sample_scene(seed: int, split: str, index: int, clip: bool = False, frames: int = FRAMES) -> Scene:
    """Scene number `index` of a split: always the same one, however many scenes the split has."""
    return draw_scene(generator(seed, split, index, clip), clip, frames, held_out=split == "compositional")


def generator(seed: int, split: str, index: int, clip: bool, stream: int = 0) -> np.random.Generator:
    """The random stream that makes one scene (stream 0) or its words (stream 1)."""
    return np.random.default_rng([seed, SPLITS.index(split), int(clip), index, stream])


def facts(scene: Scene) -> frozenset:
    """All that words can say about a scene. Equal facts, equal captions."""
    return frozenset((t.pair, t.size, t.place, t.motion, t.phase) for t in scene.things)


def draw_scene(rng: np.random.Generator, clip: bool = False, frames: int = FRAMES, held_out: bool = False) -> Scene:
    """Draw a scene; with `held_out` exactly one thing is a pair from HELD_OUT, else none is."""
    count = int(rng.choice((1, 2, 3), p=(0.3, 0.4, 0.3)))
    pairs = [PAIRS[i] for i in rng.choice(len(PAIRS), count, replace=False, p=PAIR_WEIGHTS)]
    if held_out:
        pairs[rng.integers(count)] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
    events = _draw_events(rng, count) if clip else [("stays still", "all")] * count
    things = _arrange(rng, [(*pair, *event) for pair, event in zip(pairs, events, strict=True)], frames if clip else 1)
    return Scene(things, int(rng.integers(2**31)), frames if clip else 1)


def _draw_events(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(motion, phase) of each thing: none acts (1 clip in 10), one all the time, or two in turn."""
    two = count > 1 and rng.random() < 0.6
    phases = [] if rng.random() < 0.1 else ["first", "second"] if two else ["all"]
    events = [(ACTIONS[rng.integers(len(ACTIONS))], phase) for phase in phases]
    return events + [("stays still", "all")] * (count - len(events))


def _arrange(rng: np.random.Generator, drafts: list[tuple], frames: int) -> tuple[Thing, ...]:
    """Places things one after another, each apart from those before it; begins again when one finds no room."""
    while True:
        things: list[Thing] = []
        for colour, shape, motion, phase in drafts:
            size = "changing" if motion in ("grows", "shrinks") else SIZES[rng.integers(2)]
            thing = Thing(shape, colour, size, 0.5, 0.5, float(rng.random()), motion, phase)
            thing = _placed(rng, thing, things, frames)
            if thing is None:
                break
            things.append(thing)
        else:
            return tuple(things)


def _placed(rng: np.random.Generator, thing: Thing, others: list[Thing], frames: int) -> Thing | None:
    """A thing put apart from all others; None if twenty attempts find no room."""
    for _ in range(20):
        thing = settle(thing, rng)
        if all(_apart(thing, other, frames) for other in others):
            return thing
    return None


def _edge(thing: Thing) -> float:
    """How near to the border its centre may come, when the thing is at its largest."""
    return BORDER + RADIUS[thing.size] * (SCALE[1] if thing.scales else 1)


def settle(thing: Thing, rng: np.random.Generator) -> Thing:
    """Put a thing into a cell, a little off its centre; what moves gets a path along its row or column."""
    x, y = (rng.integers(3, size=2) + 0.5) / 3 + rng.uniform(-JITTER, JITTER, 2)
    reach = 0.0
    if thing.moves:
        edge = _edge(thing)
        reach = rng.uniform(REACH[0], min(REACH[1], 1 - 2 * edge))
        middle = rng.uniform(edge + reach / 2, 1 - edge - reach / 2)
        x, y = (middle, y) if DIRECTIONS[thing.motion][0] else (x, middle)
    return pulled_inside(replace(thing, x=float(x), y=float(y), reach=float(reach)))


def pulled_inside(thing: Thing) -> Thing:
    """Shift a thing, as little as needed, so that all its path lies on the canvas."""
    right, down = DIRECTIONS.get(thing.motion, (0, 0))
    margin_x = _edge(thing) + abs(right) * thing.reach / 2
    margin_y = _edge(thing) + abs(down) * thing.reach / 2
    return replace(thing, x=min(max(thing.x, margin_x), 1 - margin_x), y=min(max(thing.y, margin_y), 1 - margin_y))
