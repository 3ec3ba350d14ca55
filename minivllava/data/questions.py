"""Questions and answers about a scene, with several phrasings of each type.

Every answer follows from the scene, and no question contains its own: a thing whose colour is asked for is
called by its shape, its size, its place or what it does. Answers are lower case, without a full stop.
Existence questions come in POPE's three settings, taken from objects to (colour, shape) pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivllava.data.captions import at_place, caption, medium, name, with_article
from minivllava.data.world import (
    COLOURS,
    HELD_OUT,
    OPPOSITE,
    PAIR_WEIGHTS,
    PAIRS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

NUMBERS = ("zero", "one", "two", "three")
POPULAR = tuple(PAIRS[i] for i in np.argsort(-PAIR_WEIGHTS, kind="stable")[:12])
APART = 0.2  # how far two things are apart on an axis before one is "left of" or "above" the other

# {} is the thing asked about (or the kind counted), {m} "picture" or "clip".
PHRASINGS = {
    "colour": ("What colour is {}?", "What is the colour of {}?", "Which colour does {} have?",
               "Tell me the colour of {}."),
    "shape": ("What shape is {}?", "What is the shape of {}?", "Which shape does {} have?",
              "Tell me the shape of {}."),
    "size": ("What size is {}?", "How big is {}?", "What is the size of {}?", "Is {} {} or {}?"),
    "count": ("How many {} are there?", "How many {} are in the {m}?", "How many {} does the {m} show?",
              "Count the {}."),
    "position": ("Where is {}?", "What is the position of {}?", "Which part of the {m} is {} in?",
                 "In what place is {}?"),
    "existence": ("Is there {}?", "Is there {} in the {m}?", "Can you see {}?", "Does the {m} show {}?"),
    "motion": ("What does {} do?", "What happens to {}?", "What is {} doing?", "How does {} change?"),
    "describe": ("Describe the {m}.", "What does the {m} show?", "Give a caption of the {m}.",
                 "What is in the {m}?", "Tell me what you see in the {m}."),
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `needs_order`: without the order of frames it is a coin toss."""

    question: str
    answer: str
    type: str
    needs_order: bool = False


def describe(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a caption, and the caption."""
    what = pick(rng, PHRASINGS["describe"])
    return Turn(what.format(m=medium(scene)), caption(scene, rng), "describe")


def pick(rng: np.random.Generator, options):
    """One of several options, all alike."""
    return options[rng.integers(len(options))]


def refer(scene: Scene, thing: Thing, rng: np.random.Generator, hide: str = "") -> str | None:
    """Call a thing by a name no other thing has, saying nothing of its `hide` ("colour" or "shape")."""

    def alone(*attributes: str) -> bool:
        same = [all(getattr(other, a) == getattr(thing, a) for a in attributes) for other in scene.things]
        return sum(same) == 1

    options = []
    if hide != "colour" and alone("colour"):
        options.append(f"the {thing.colour} object")
    if hide != "shape" and alone("shape"):
        options.append(f"the {thing.shape}")
    if not hide:
        return pick(rng, options) if options and rng.random() < 0.8 else f"the {name(thing)}"

    shown = thing.shape if hide == "colour" else f"{thing.colour} object"
    attribute = "shape" if hide == "colour" else "colour"
    if len(scene.things) == 1:
        options.append("the object")
    if not any(other.scales for other in scene.things) and alone("size", attribute):
        options.append(f"the {thing.size} {shown}")
    if thing.place and alone("place"):
        options += [f"the object {at_place(thing.place)}", f"the {shown} {at_place(thing.place)}"]
    if thing.acts and sum(other.acts for other in scene.things) == 1:
        verb = "moves" if thing.moves else "changes size" if thing.scales else "blinks"
        options.append(f"the object that {verb}")
    return pick(rng, options) if options else None


def _candidates(scene: Scene, focus: Thing | None) -> list[Thing]:
    return [focus] if focus else list(scene.things)


def _ask_colour(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    thing = pick(rng, _candidates(scene, focus))
    ref = refer(scene, thing, rng, hide="colour")
    asked = pick(rng, PHRASINGS["colour"])
    return Turn(asked.format(ref), thing.colour, "colour") if ref else None


def _ask_shape(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    thing = pick(rng, _candidates(scene, focus))
    ref = refer(scene, thing, rng, hide="shape")
    asked = pick(rng, PHRASINGS["shape"])
    return Turn(asked.format(ref), thing.shape, "shape") if ref else None


def _ask_size(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    thing = pick(rng, _candidates(scene, focus))
    if thing.scales:
        return None
    asked = pick(rng, PHRASINGS["size"])
    return Turn(asked.format(refer(scene, thing, rng), *shuffled(rng, SIZES)), thing.size, "size")


def _ask_count(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    """All things in one question of three, else those of a colour, shape or size, all numbers alike."""
    if focus:
        return None
    of_kind = {"objects": len(scene.things)}
    if rng.random() > 1 / 3:
        of_kind = {f"{colour} objects": sum(t.colour == colour for t in scene.things) for colour in COLOURS}
        of_kind |= {plural(shape): sum(t.shape == shape for t in scene.things) for shape in SHAPES}
        if not any(thing.scales for thing in scene.things):
            of_kind |= {f"{size} objects": sum(t.size == size for t in scene.things) for size in SIZES}
    number = pick(rng, sorted(set(of_kind.values())))
    kind = pick(rng, [kind for kind, total in of_kind.items() if total == number])
    asked = pick(rng, PHRASINGS["count"])
    return Turn(asked.format(kind, m=medium(scene)), NUMBERS[number], "count")


def _ask_position(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    thing = pick(rng, _candidates(scene, focus))
    if thing.moves:
        return None
    asked = pick(rng, PHRASINGS["position"])
    return Turn(asked.format(refer(scene, thing, rng), m=medium(scene)), thing.place, "position")


def _ask_relation(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    """Which side of another thing: as a choice of two words, or as a yes or no."""
    first = pick(rng, _candidates(scene, focus))
    others = [other for other in scene.things if other is not first]
    if not others or first.moves:
        return None
    second = pick(rng, others)
    axes = [(first.x - second.x, "left of", "right of"), (first.y - second.y, "above", "below")]
    axes = [axis for axis in axes if abs(axis[0]) >= APART]
    if second.moves or not axes:
        return None
    difference, *sides = pick(rng, axes)
    side = sides[difference > 0]
    first_ref, second_ref = refer(scene, first, rng), refer(scene, second, rng)
    if rng.random() < 0.5:
        options = " or ".join(word.removesuffix(" of") for word in shuffled(rng, sides))
        options += " of" if side.endswith(" of") else ""
        asked = pick(rng, ("Is {} {} {}?", "Is {} placed {} {}?", "Does {} lie {} {}?"))
        return Turn(asked.format(first_ref, options, second_ref), side.removesuffix(" of"), "relation")
    claim = pick(rng, sides)
    asked = pick(rng, ("Is {} {} {}?", "Is it true that {} is {} {}?", "Does {} lie {} {}?"))
    return Turn(asked.format(first_ref, claim, second_ref), "yes" if claim == side else "no", "relation")


def _ask_existence(negatives: str) -> Callable[..., Turn | None]:
    """Is there such a pair: half yes, half no, and the absent pair found in one of POPE's three settings.

    Yes and no ask for the same kinds of pairs, or the words alone would give the answer away: popular pairs
    only where one is present, and with `focus` only pairs from HELD_OUT.
    """

    def ask(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
        things = [thing.pair for thing in scene.things]
        asked_for = sorted(HELD_OUT) if focus else POPULAR if negatives == "popular" else PAIRS
        present = [pair for pair in things if pair in asked_for]
        absent = [pair for pair in asked_for if pair not in things]
        if negatives == "adversarial":
            absent = _lookalikes(scene, absent)
        if not present or not absent or (focus and negatives == "popular"):
            return None
        there = rng.random() < 0.5
        asked = pick(rng, PHRASINGS["existence"])
        noun = with_article(" ".join(pick(rng, present if there else absent)))
        answer = "yes" if there else "no"
        return Turn(asked.format(noun, m=medium(scene)), answer, f"existence/{negatives}")

    return ask


def _lookalikes(scene: Scene, absent: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Absent pairs whose colour and shape both occur, on different things; failing that, one of the two."""
    colours, shapes = {thing.colour for thing in scene.things}, {thing.shape for thing in scene.things}
    half = [(c, s) for c, s in absent if (c in colours) != (s in shapes)]
    return [(c, s) for c, s in absent if c in colours and s in shapes] or half


def _ask_motion(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    """What a thing does, or which of two opposites; mostly of things that act."""
    if not scene.is_clip:
        return None
    things = _candidates(scene, focus)
    acting = [thing for thing in things if thing.acts]
    thing = pick(rng, acting if acting and rng.random() < 0.9 else things)
    ref = refer(scene, thing, rng)
    if (thing.moves or thing.scales) and rng.random() < 0.35:
        motions = shuffled(rng, (thing.motion, OPPOSITE[thing.motion]))
        verbs = [motion.removeprefix("moves ").removesuffix("s") for motion in motions]
        if thing.moves:
            asked = pick(rng, ("Does {} move {} or {}?", "Is {} moving {} or {}?"))
            return Turn(asked.format(ref, *verbs), thing.motion.removeprefix("moves "), "motion", True)
        return Turn("Does {} {} or {}?".format(ref, *verbs), thing.motion, "motion", True)
    asked = pick(rng, PHRASINGS["motion"])
    return Turn(asked.format(ref), thing.motion, "motion", thing.motion in OPPOSITE)


def _ask_order(scene: Scene, rng: np.random.Generator, focus: Thing | None) -> Turn | None:
    """Which of two events comes first: five kinds of question, each even between its answers."""
    if len(scene.events) != 2 or (focus and not focus.acts):
        return None
    first, second = scene.events
    one, other = shuffled(rng, scene.events)
    one_ref, other_ref = refer(scene, one, rng), refer(scene, other, rng)
    kind = rng.integers(5)
    if kind == 0:
        end, chosen = pick(rng, (("first", first), ("last", second)))
        asked = pick(rng, ("Which changes {}, the {} or the {}?", "What acts {}: the {} or the {}?"))
        question, answer = asked.format(end, name(one), name(other)), f"the {name(chosen)}"
    elif kind == 1:
        asked = pick(rng, ("Does {} change before or after {}?", "Does {} act before or after {}?"))
        question, answer = asked.format(one_ref, other_ref), "before" if one is first else "after"
    elif kind == 2:
        claim = pick(rng, ("before", "after"))
        asked = pick(rng, ("Does {} change {} {}?", "Is it true that {} acts {} {}?"))
        question = asked.format(one_ref, claim, other_ref)
        answer = "yes" if (claim == "before") == (one is first) else "no"
    elif kind == 3:
        moment, hit = pick(rng, (("after {} stops", one is first), ("before {} starts", one is second)))
        asked = pick(rng, ("What changes {}?", "Which object acts {}?"))
        question, answer = asked.format(moment.format(one_ref)), f"the {name(other)}" if hit else "nothing"
    else:
        end, chosen = pick(rng, (("first", first), ("last", second)))
        asked = pick(rng, ("What happens {}?", "What happens {} in the clip?"))
        question, answer = asked.format(end), f"the {name(chosen)} {chosen.motion}"
    return Turn(question, answer, "order", needs_order=True)


def shuffled(rng: np.random.Generator, items) -> tuple:
    """The items in a random order."""
    return tuple(items[i] for i in rng.permutation(len(items)))


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


QUESTIONS: dict[str, Callable[..., Turn | None]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "size": _ask_size,
    "count": _ask_count,
    "position": _ask_position,
    "relation": _ask_relation,
    "existence/random": _ask_existence("random"),
    "existence/popular": _ask_existence("popular"),
    "existence/adversarial": _ask_existence("adversarial"),
    "motion": _ask_motion,
    "order": _ask_order,
}
