"""Several questions about one scene, so that no question gives another's answer away."""

import numpy as np

from minivllava.data.captions import at_place, name
from minivllava.data.questions import QUESTIONS, Turn
from minivllava.data.world import Scene, Thing

# Tried more often in a conversation: earlier turns give the first two away most, the others suit few scenes.
OFTEN = ("colour", "colour", "shape", "shape", "motion", "order", "order")
# And about what is seen: questions that are answered only by finding the thing that they name. Of these a model
# learns to look things up; counts and existence it learns early, from what is seen as a whole.
OFTEN_SEEN = (*OFTEN, "position", "position", "position", "size", "relation", "relation", "motion")


def turns(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    focus: Thing | None = None,
    conversation: bool = True,
    often: tuple[str, ...] = OFTEN,
) -> list[Turn]:
    """Ask up to `count` different questions, types as even as the scene allows; in a conversation those in
    `often` are tried once more for each time they stand there.

    In a conversation nothing is asked that an earlier turn gives away: "the red circle" in one question would
    answer "What colour is the circle?" after it, and a model would learn to look there, not at the image.
    With `focus` all questions are about that thing, and existence is asked of pairs from HELD_OUT.
    """
    asked: dict[str, Turn] = {}
    types = [*QUESTIONS, *(often if conversation else ())]
    for _ in range(4):  # each round asks one question of every type that applies
        for i in rng.permutation(len(types)):
            if len(asked) == count:
                break
            turn = QUESTIONS[types[i]](scene, rng, focus)
            if turn and not (conversation and _given_away(turn, scene, list(asked.values()))):
                asked.setdefault(turn.question, turn)
    return list(asked.values())


def _given_away(turn: Turn, scene: Scene, earlier: list[Turn]) -> bool:
    """Whether the words of earlier turns tell this one's answer."""
    affirmed = [other for other in earlier if other.answer not in ("no", "zero")]
    told = " ".join(f"{other.question} {other.answer}" for other in affirmed)
    if turn.type in ("colour", "shape"):
        return turn.answer in told
    if turn.type == "size":
        return f"the {turn.answer}" in told
    if turn.type == "position":
        return at_place(turn.answer) in told or any(turn.answer == other.answer for other in earlier)
    if turn.type == "motion":
        return any(turn.answer in other.answer for other in earlier if other.type in ("motion", "order"))
    if turn.type == "order":
        return any(other.type == "order" for other in earlier)
    # a question that names any thing of the scene spoils existence, with yes as with no: the answers stay balanced
    return turn.type.startswith("existence") and any(name(thing) in told for thing in scene.things)
