"""Siblings: scenes that differ in exactly one thing said about them, the hard negatives of alignment.

Captions of random scenes differ in nearly every word, so colour and place alone tell them apart, and an
encoder learns no more than that. A sibling's caption differs in one word, or in the order of two.
"""

from dataclasses import replace

import numpy as np

from minivllava.data.world import (
    COLOURS,
    DIRECTIONS,
    FRAMES,
    HELD_OUT,
    OPPOSITE,
    SHAPES,
    Scene,
    Thing,
    draw_scene,
    facts,
    generator,
    is_valid,
    pulled_inside,
    settle,
)

FAMILY = 4  # a scene and three siblings


def sample_family(seed: int, index: int, clip: bool = False, frames: int = FRAMES) -> list[Scene]:
    """Family number `index` of the alignment split: a scene and its siblings, all different in words."""
    rng = generator(seed, "align", index, clip)
    family = [draw_scene(rng, clip, frames)]
    while len(family) < FAMILY:
        candidate = sibling(family[0], rng)
        if all(facts(candidate) != facts(member) for member in family):
            family.append(candidate)
    return family


def sibling(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing changed.

    One attribute of one thing (colour, shape, size, place, motion) becomes another, or two things trade
    colours, shapes or, in a clip, their turns. Texture, depth and everything else stay the same.
    """
    changes = [_colour, _shape, _size, _place]
    changes += [_trade_colours, _trade_shapes] if len(scene.things) > 1 else []
    changes += [_motion] * 3 if scene.is_clip else []
    changes += [_trade_turns] * 2 if len(scene.events) == 2 else []
    while True:
        change = changes[rng.integers(len(changes))]
        new = dict(enumerate(scene.things)) | change(scene.things, rng)
        other = replace(scene, things=tuple(new.values()))
        if (
            facts(other) != facts(scene)
            and is_valid(other)
            and not any(thing.pair in HELD_OUT for thing in other.things)
        ):
            return other


# Each change takes the things and gives the new ones by index. Changes that change nothing, or break the
# scene, are thrown away by `sibling`.
Things = tuple[Thing, ...]
Change = dict[int, Thing]


def _one(things: Things, rng: np.random.Generator) -> tuple[int, Thing]:
    i = int(rng.integers(len(things)))
    return i, things[i]


def _two(things: Things, rng: np.random.Generator) -> tuple[int, int, Thing, Thing]:
    i, j = (int(index) for index in rng.choice(len(things), 2, replace=False))
    return i, j, things[i], things[j]


def _colour(things: Things, rng: np.random.Generator) -> Change:
    i, thing = _one(things, rng)
    return {i: replace(thing, colour=COLOURS[rng.integers(len(COLOURS))])}


def _shape(things: Things, rng: np.random.Generator) -> Change:
    i, thing = _one(things, rng)
    return {i: replace(thing, shape=SHAPES[rng.integers(len(SHAPES))])}


def _size(things: Things, rng: np.random.Generator) -> Change:
    i, thing = _one(things, rng)
    other = {"small": "large", "large": "small", "changing": "changing"}[thing.size]
    return {i: pulled_inside(replace(thing, size=other))}


def _place(things: Things, rng: np.random.Generator) -> Change:
    i, thing = _one(things, rng)
    return {} if thing.moves else {i: settle(thing, rng)}


def _motion(things: Things, rng: np.random.Generator) -> Change:
    """Another direction (most often the opposite one), growing for shrinking, blinking for staying still.

    The last only in clips without a second event, whose turns would lose their meaning.
    """
    i, thing = _one(things, rng)
    if thing.moves:
        motions = [*DIRECTIONS, OPPOSITE[thing.motion], OPPOSITE[thing.motion]]
    elif thing.scales:
        motions = [OPPOSITE[thing.motion]]
    elif sum(other.acts for other in things) == thing.acts:
        motions = ["stays still" if thing.acts else "blinks"]
    else:
        return {}
    return {i: replace(thing, motion=motions[rng.integers(len(motions))])}


def _trade_colours(things: Things, rng: np.random.Generator) -> Change:
    i, j, a, b = _two(things, rng)
    return {i: replace(a, colour=b.colour), j: replace(b, colour=a.colour)}


def _trade_shapes(things: Things, rng: np.random.Generator) -> Change:
    i, j, a, b = _two(things, rng)
    return {i: replace(a, shape=b.shape), j: replace(b, shape=a.shape)}


def _trade_turns(things: Things, rng: np.random.Generator) -> Change:
    return {i: replace(thing, phase=OPPOSITE.get(thing.phase, "all")) for i, thing in enumerate(things)}
