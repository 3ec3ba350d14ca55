"""Captions: one sentence that says all there is to say about a scene."""

import numpy as np

from minivllava.data.world import Scene, Thing

IMAGE_OPENINGS = ("", "", "there is ", "a picture of ", "the picture shows ", "this is ")
CLIP_OPENINGS = ("", "", "in the clip, ", "a clip in which ", "the clip shows how ", "here ")


def name(thing: Thing) -> str:
    """Colour and shape, which together no other thing of the scene has: "red circle"."""
    return f"{thing.colour} {thing.shape}"


def sized_name(thing: Thing) -> str:
    """Size, colour and shape: "small red circle"; what grows or shrinks has no size."""
    return name(thing) if thing.scales else f"{thing.size} {name(thing)}"


def full_name(thing: Thing) -> str:
    """The same with its article: "a small red circle"."""
    return with_article(sized_name(thing))


def with_article(noun: str) -> str:
    """A noun with "a" or "an" before it."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def at_place(place: str) -> str:
    """A cell with its preposition: "at the top left", "on the right", "in the centre"."""
    preposition = {"left": "on", "right": "on", "centre": "in"}.get(place, "at")
    return f"{preposition} the {place}"


def joined(parts: list[str]) -> str:
    """Joins with commas and a last "and"."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def medium(scene: Scene) -> str:
    """What questions call a scene: a "clip", or for an image the everyday word, "picture"."""
    return "clip" if scene.is_clip else "picture"


def action(thing: Thing) -> str:
    """What a thing does, and where if it stays in its place: "grows on the left", "moves up"."""
    return thing.motion if thing.moves else f"{thing.motion} {at_place(thing.place)}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe all things: in an image line by line, in a clip those that act first, in order of time."""
    raster = sorted(scene.things, key=lambda thing: (int(3 * thing.y), thing.x))
    if not scene.is_clip:
        opening = IMAGE_OPENINGS[rng.integers(len(IMAGE_OPENINGS))]
        return opening + joined([f"{full_name(thing)} {at_place(thing.place)}" for thing in raster])
    still = joined([f"{full_name(thing)} {action(thing)}" for thing in raster if not thing.acts] or [""])
    events = ", then ".join(f"{full_name(thing)} {action(thing)}" for thing in scene.events)
    opening = CLIP_OPENINGS[rng.integers(len(CLIP_OPENINGS))]
    return opening + ", while ".join(filter(None, (events, still)))
