"""Text-only conversations, on which the language model learns to read before it learns to see.

The questions are those about images and clips, but the scene is told in words: the decoder learns from text alone to
bind a colour to its shape, to count, and to reason from places to relations. A little chat keeps it able to answer when
there is nothing to look at. Lists are shorter to read and are asked more about: most of their words are questions that
are answered only by finding the thing that they name.
"""

from dataclasses import replace

import numpy as np

from minivllava.data.captions import at_place, caption, full_name, joined, name, sized_name, with_article
from minivllava.data.dialogue import turns
from minivllava.data.questions import QUESTIONS, Turn, describe, pick, plural, shuffled
from minivllava.data.world import ACTIONS, COLOURS, SHAPES, Scene, Thing, draw_scene

TURN_COUNTS = (4, 9)  # questions about one description, both ends included
LIST_TURNS = 10  # about a list, and then a caption
# What a list is asked: mostly what is answered only by finding the thing that the question names.
LOOK_UPS = (
    "colour", "colour", "shape", "shape", "size", "size", "position", "position", "relation", "motion", "motion",
    "order", "order", "existence/adversarial", "existence/random", "count",
)  # fmt: skip

CHAT = (
    ("Hello.", "Hello! Show me a picture or a clip, and ask me about it."),
    ("Hi there.", "Hello! Show me a picture or a clip, and ask me about it."),
    ("What are you?", "I am a small model that answers questions about pictures and clips."),
    ("Who are you?", "I am a small model that answers questions about pictures and clips."),
    ("What can you do?", "I can tell colours, shapes, sizes, places and motions, and what comes first."),
    ("Can you see a picture?", "I can, if you give me one."),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot.", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("How are you?", "I am well, thank you."),
    ("Which colours do you know?", joined(list(COLOURS))),
    ("Which shapes do you know?", joined(list(SHAPES))),
    ("What can an object do in a clip?", joined(list(ACTIONS))),
    ("What comes after one?", "two"),
    ("What comes after two?", "three"),
    ("What comes before two?", "one"),
    ("What is the opposite of small?", "large"),
    ("What is the opposite of left?", "right"),
    ("What is the opposite of above?", "below"),
    ("What is the opposite of before?", "after"),
    ("How many corners does a triangle have?", "three"),
    ("How many corners does a circle have?", "zero"),
)


def text_document(rng: np.random.Generator, lists: float = 0.0) -> list[Turn]:
    """One conversation: chat (1 in 20), or a scene in words before the first of several questions on it. Of all
    conversations the share `lists` is about a list."""
    if lists and rng.random() < lists:
        return _list_document(rng)
    if rng.random() < 0.05:
        return _chat(rng)
    scene = draw_scene(rng, clip=bool(rng.random() < 0.5))
    conversation = turns(scene, rng, int(rng.integers(TURN_COUNTS[0], TURN_COUNTS[1] + 1)))
    if rng.random() < 0.3:
        conversation.insert(int(rng.integers(len(conversation) + 1)), describe(scene, rng))
    first = conversation[0]
    conversation[0] = replace(first, question=f"{description(scene, rng)}\n{first.question}")
    return conversation


def _list_document(rng: np.random.Generator) -> list[Turn]:
    """Two or three things in a list, questions on them, some answered by what was asked before, and a caption."""
    clip = bool(rng.random() < 1 / 3)
    scene = draw_scene(rng, clip)
    while len(scene.things) < 2:
        scene = draw_scene(rng, clip)
    asked: dict[str, Turn] = {}
    for _ in range(4 * LIST_TURNS):
        turn = QUESTIONS[pick(rng, LOOK_UPS)](scene, rng, None)
        if turn and len(asked) < LIST_TURNS:
            asked.setdefault(turn.question, turn)
    conversation = [*asked.values(), describe(scene, rng)]
    first = conversation[0]
    conversation[0] = replace(first, question=f"{_listed(scene, rng)}\n{first.question}")
    return conversation


def _listed(scene: Scene, rng: np.random.Generator) -> str:
    """ "top, blinks first: small red circle. left: large blue ring." All of a thing is known at its last word."""
    lines = []
    for thing in shuffled(rng, scene.things):
        facts = filter(None, (thing.place, _motion(scene, thing)))
        lines.append(f"{', '.join(facts)}: {sized_name(thing)}.")
    return " ".join(lines)


def description(scene: Scene, rng: np.random.Generator) -> str:
    """Tell a scene in words: as a caption, as a list of facts, or in short sentences, in any order."""
    things = list(shuffled(rng, scene.things))
    style = rng.integers(4)
    if style == 0:
        return caption(scene, rng) + "."
    if style == 1:
        return " ".join(f"{thing.shape}: {', '.join(_facts(scene, thing, rng))}." for thing in things)
    if style == 2:
        return " ".join(_sentences(scene, thing) for thing in things)
    sentences = [sentence for thing in things for sentence in _separate_sentences(scene, thing)]
    return " ".join(shuffled(rng, sentences))


def _turn_word(scene: Scene, thing: Thing) -> str | None:
    """ "first" or "second", where two things act one after the other."""
    return thing.phase if len(scene.events) == 2 and thing.acts else None


def _motion(scene: Scene, thing: Thing) -> str | None:
    """What it does in a clip, and when: "blinks first"."""
    return " ".join(filter(None, (thing.motion, _turn_word(scene, thing)))) if scene.is_clip else None


def _facts(scene: Scene, thing: Thing, rng: np.random.Generator) -> tuple[str, ...]:
    size = None if thing.scales else thing.size
    return shuffled(rng, [fact for fact in (thing.colour, size, thing.place, _motion(scene, thing)) if fact])


def _sentences(scene: Scene, thing: Thing) -> str:
    """ "There is a small red circle. It is at the top left. It blinks first." """
    sentences = [f"There is {full_name(thing)}."]
    if thing.place:
        sentences.append(f"It is {at_place(thing.place)}.")
    if scene.is_clip:
        sentences.append(f"It {_motion(scene, thing)}.")
    return " ".join(sentences)


def _separate_sentences(scene: Scene, thing: Thing) -> list[str]:
    """Sentences that each name the thing, so that they can stand in any order."""
    sentences = [] if thing.scales else [f"The {name(thing)} is {thing.size}."]
    if thing.place:
        sentences.append(f"The {name(thing)} is {at_place(thing.place)}.")
    if scene.is_clip:
        when = {"first": "First, the", "second": "Second, the"}.get(_turn_word(scene, thing), "The")
        sentences.append(f"{when} {name(thing)} {thing.motion}.")
    return sentences


def _chat(rng: np.random.Generator) -> list[Turn]:
    chosen = rng.choice(len(CHAT), int(rng.integers(1, 4)), replace=False)
    conversation = [Turn(*CHAT[i], "chat") for i in chosen]
    colour, shape = pick(rng, COLOURS), pick(rng, SHAPES)
    conversation.append(
        pick(
            rng,
            (
                Turn(f"Is {colour} a colour or a shape?", "a colour", "chat"),
                Turn(f"Is {with_article(shape)} a colour or a shape?", "a shape", "chat"),
                Turn(f"What do you call more than one {shape}?", plural(shape), "chat"),
            ),
        )
    )
    return conversation
