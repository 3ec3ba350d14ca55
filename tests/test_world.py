"""The embedded world: same seed, same bytes; true answers; nothing given away."""

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minivllava.data.build import FILES, VERSION, build_world, world_folder
from minivllava.data.captions import caption
from minivllava.data.dialogue import OFTEN_SEEN, turns
from minivllava.data.questions import QUESTIONS, describe
from minivllava.data.records import load_records
from minivllava.data.render import RGB, coverage, render, render_depth
from minivllava.data.siblings import sample_family, sibling
from minivllava.data.text_corpus import LIST_TURNS, LOOK_UPS, description, text_document
from minivllava.data.world import (
    COLOURS,
    FRAMES,
    HELD_OUT,
    MOTIONS,
    OPPOSITE,
    PLACES,
    SHAPES,
    SIZES,
    Thing,
    facts,
    generator,
    is_valid,
    reversed_in_time,
    sample_scene,
)
from minivllava.errors import ConfigError
from minivllava.presets import preset
from minivllava.run_config import WorldConfig

TINY = WorldConfig(
    size=32,
    images=6,
    clips=4,
    turns=4,
    align_images=8,
    align_clips=4,
    text_documents=8,
    validation=2,
    test=3,
    compositional=3,
    depth=True,
)
SEEN = tuple(int(t) for t in np.linspace(0, FRAMES - 1, 8, dtype=int))  # the frames a model is shown


@cache
def scenes(split="train", count=200):
    return [sample_scene(3, split, i, clip) for clip in (False, True) for i in range(count)]


@cache
def asked(split="test", count=300, questions=6):
    """(scene, turn) of many scenes."""
    pairs = []
    for i, scene in enumerate(scenes(split, count)):
        focus = next((thing for thing in scene.things if thing.pair in HELD_OUT), None)
        pairs += [(scene, turn) for turn in turns(scene, np.random.default_rng(i), questions, focus, False)]
    return pairs


def digest(folder):
    """One hash over the names and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


# A reader of questions that knows nothing of the generator: it looks at where things are in each frame.

REFERENCE = re.compile(
    r"the (?:(?P<size>{}) )?(?:(?P<colour>{}) )?(?P<shape>object|{})\b(?: (?:at|on|in) the (?P<place>{})\b)?"
    r"(?: that (?P<deed>moves|changes size|blinks))?".format(
        *("|".join(sorted(words, key=len, reverse=True)) for words in (SIZES, COLOURS, SHAPES, PLACES))
    )
)
COUNT = rf"(?:How many|Count the) (?:(\w+) )?(object|{'|'.join(SHAPES)})(?:es|s)\b"
NUMBER = ("zero", "one", "two", "three")


def deed(thing, frames):
    """(what it does, frame in whose neighbourhood it does it), from its track alone."""
    x, y, radius, visible = thing.track(frames)
    changing = np.abs(np.diff(np.stack([x, y, radius, visible]))).max(0) > 1e-6
    when = float(np.flatnonzero(changing).mean()) if changing.any() else None
    for values, down, up in (
        (x, "moves left", "moves right"),
        (y, "moves up", "moves down"),
        (radius, "shrinks", "grows"),
    ):
        if abs(values[-1] - values[0]) > 0.05:
            return (up if values[-1] > values[0] else down), when
    return ("stays still" if visible.all() else "blinks"), when


def cell(thing):
    row, column = (("top", "", "bottom")[int(thing.y * 3)], ("left", "", "right")[int(thing.x * 3)])
    return f"{row} {column}".strip() or "centre"


def called(scene, match):
    """The one thing that is called so."""
    classes = {"moves": "moves", "grows": "changes size", "shrinks": "changes size", "blinks": "blinks"}
    found = [
        thing
        for thing in scene.things
        if match["size"] in (None, thing.size)
        and match["colour"] in (None, thing.colour)
        and match["shape"] in ("object", thing.shape)
        and match["place"] in (None, "moves" not in deed(thing, scene.frames)[0] and cell(thing))
        and match["deed"] in (None, classes.get(deed(thing, scene.frames)[0].split()[0]))
    ]
    assert len(found) == 1, f"{match[0]!r} names {len(found)} things in {scene}"
    return found[0]


def true_answer(scene, question):
    if pair := re.match(r"(?:Is there|Can you see|Does the \w+ show) an? (\w+) (\w+)", question):
        return "yes" if pair.groups() in [thing.pair for thing in scene.things] else "no"
    if kind := re.match(COUNT, question):
        word, noun = kind.groups()
        kinds = [(word in (None, t.size, t.colour) and noun in ("object", t.shape)) for t in scene.things]
        return NUMBER[sum(kinds)]

    when = {thing: deed(thing, scene.frames)[1] for thing in scene.things}
    events = sorted((thing for thing in when if when[thing] is not None), key=when.get)
    event = [f"the {thing.colour} {thing.shape}" for thing in events]
    if end := re.match(r"What happens (first|last)", question):
        return f"{event[0 if end[1] == 'first' else 1]} {deed(events[end[1] == 'last'], scene.frames)[0]}"

    names = [called(scene, match) for match in REFERENCE.finditer(question)]
    asked = REFERENCE.sub("#", question)
    thing = names[0]
    if "colour" in asked:
        return thing.colour
    if "shape" in asked:
        return thing.shape
    if re.search("size|big|small or large|large or small", asked):
        return thing.size
    if re.match("Where|What is the position|Which part|In what place", asked):
        return cell(thing)
    if sides := re.search("(left|right|above|below)(?: or (left|right|above|below))?(?: of)? #", asked):
        difference = (names[0].x - names[1].x) if sides[1] in ("left", "right") else (names[0].y - names[1].y)
        assert abs(difference) >= 0.2
        side = {"left": ("left", "right"), "above": ("above", "below")}[
            "left" if sides[1] in ("left", "right") else "above"
        ][difference > 0]
        assert sides[2] is None or {sides[1], sides[2]} in ({"left", "right"}, {"above", "below"})
        return side if sides[2] else "yes" if side == sides[1] else "no"
    if re.search("mov(e|ing) (left|right|up|down) or", asked):
        return deed(thing, scene.frames)[0].split()[1]
    if re.match("(What does # do|What happens to|What is # doing|How does # change|Does # (grow|shrink))", asked):
        return deed(thing, scene.frames)[0]

    position = events.index(thing)
    if end := re.search("(first|last)", asked):
        return event[end[1] == "last"]
    if re.search("before or after", asked):
        return ("before", "after")[position]
    if claim := re.search("(before|after) #\\?", asked):
        return "yes" if claim[1] == ("before", "after")[position] else "no"
    moment = re.search("(after|before) # (stops|starts)", asked)
    return event[1 - position] if (moment[1] == "after") == (position == 0) else "nothing"


@pytest.mark.parametrize("split", ["test", "compositional"])
def test_every_answer_is_true_and_every_name_means_one_thing(split):
    types = Counter()
    for scene, turn in asked(split):
        assert turn.answer == true_answer(scene, turn.question), (scene, turn)
        types[turn.type] += 1
    expected = set(QUESTIONS) - ({"count", "existence/popular"} if split == "compositional" else set())
    assert set(types) == expected


def test_questions_do_not_contain_their_answers():
    for _, turn in asked():
        words = set(re.findall(r"\w+", turn.question))
        alternatives = " or " in turn.question
        if turn.type in ("colour", "shape"):
            assert turn.answer not in words
        elif turn.type == "position":
            assert not words & {"top", "bottom", "left", "right", "centre"}
        elif turn.type in ("motion", "size") and not alternatives:
            verbs = {"move", "grow", "shrink", "blink", *" ".join(MOTIONS).split()}
            assert not words & (verbs if turn.type == "motion" else set(SIZES))


def test_no_turn_of_a_conversation_gives_a_later_answer_away():
    types = Counter()
    for i, scene in enumerate(scenes()):
        told = ""
        for turn in turns(scene, np.random.default_rng(i), 6):
            types[turn.type] += 1
            if turn.type in ("colour", "shape"):
                assert turn.answer not in told
            elif turn.type.startswith("existence"):
                assert not any(f"{thing.colour} {thing.shape}" in told for thing in scene.things)
            assert turn.answer == true_answer(scene, turn.question)
            told += f" {turn.question} {turn.answer}" if turn.answer not in ("no", "zero") else ""
    assert set(types) == set(QUESTIONS) and types["colour"] + types["shape"] > types.total() / 6


def test_training_asks_most_about_what_must_be_looked_up(world):
    """And more of a scene with more things."""
    asked, lengths = Counter(), {}
    for record in json.loads((world / "stage2.json").read_text()):
        if "image" in record and "describe" not in record["types"]:
            asked.update(kind.split("/")[0] for kind in record["types"])
            scene = sample_scene(TINY.seed, "train", int(record["id"].rpartition("-")[2]), False, TINY.frames)
            lengths.setdefault(len(scene.things), []).append(len(record["types"]))
    assert sum(asked[kind] for kind in ("colour", "shape", "position", "size", "relation")) > asked.total() / 2
    assert max(lengths[min(lengths)]) < max(lengths[max(lengths)])


def test_yes_and_no_are_balanced_and_no_answer_leads():
    by_type: dict[str, Counter] = {}
    for _, turn in asked():
        by_type.setdefault(turn.type, Counter())[turn.answer] += 1
    for kind in ("existence/random", "existence/popular", "existence/adversarial"):
        assert 0.42 < by_type[kind]["yes"] / by_type[kind].total() < 0.58, kind
    everything = sum(by_type.values(), Counter())
    assert everything.most_common(1)[0][1] / everything.total() < 0.25
    assert by_type["count"].most_common(1)[0][1] / by_type["count"].total() < 0.5


def test_held_out_pairs_never_leave_the_compositional_split():
    colours, shapes = zip(*HELD_OUT, strict=True)
    assert sorted(colours) == sorted(COLOURS) and set(shapes) == set(SHAPES)
    families = [scene for i in range(60) for clip in (False, True) for scene in sample_family(3, i, clip)]
    for scene in [*families, *scenes("train"), *scenes("validation"), *scenes("test")]:
        assert not {thing.pair for thing in scene.things} & HELD_OUT
    for scene in scenes("compositional"):
        assert len({thing.pair for thing in scene.things} & HELD_OUT) == 1
    rng = np.random.default_rng(0)
    texts = [turn.question + " " + turn.answer for _ in range(400) for turn in text_document(rng)]
    texts += [turn.question for _, turn in asked("train", 100)]
    for colour, shape in HELD_OUT:
        told = re.compile(rf"\b{colour} {shape}\b|\b{shape}: [^.]*\b{colour}\b")
        assert not any(told.search(text) for text in texts)


def test_things_keep_apart_and_inside_in_every_frame():
    for scene in scenes(count=60):
        assert is_valid(scene)
        shape = (scene.frames, 64, 64)
        covers = [np.broadcast_to(coverage(thing, scene.frames, 64), shape) for thing in scene.things]
        assert np.sum([cover > 0 for cover in covers], axis=0).max() <= 1
        for cover in covers:
            assert max(cover[:, [0, -1]].max(), cover[:, :, [0, -1]].max()) < 0.5
        for thing in scene.things:
            away = min(abs(v - wall) for v in (thing.x, thing.y) for wall in (1 / 3, 2 / 3))
            assert thing.moves or away > 0.1, "its cell could be read in two ways"


def test_shapes_and_colours_differ_at_nine_pixels():
    masks = {shape: coverage(Thing(shape, "red", "small", 0.5, 0.5), 1, 32)[0] for shape in SHAPES}
    for a in SHAPES:
        assert 7 <= masks[a].sum(0).astype(bool).sum() <= 11
        for b in SHAPES[: SHAPES.index(a)]:
            assert np.minimum(masks[a], masks[b]).sum() / np.maximum(masks[a], masks[b]).sum() < 0.85, (a, b)
    for a in COLOURS:
        for b in COLOURS[: COLOURS.index(a)]:
            assert np.linalg.norm(np.subtract(RGB[a], RGB[b])) > 80, (a, b)


def test_pixels_have_the_colour_and_place_of_the_scene():
    for scene in scenes(count=30)[:30]:
        pixels, depth = render(scene, 64), render_depth(scene, 64)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        assert depth.shape == (64, 64) and depth.dtype == np.uint8
        for thing in scene.things:
            inside = coverage(thing, 1, 64)[0] == 1
            assert np.abs(pixels[inside].astype(int) - RGB[thing.colour]).max() <= 1
            assert np.ptp(depth[inside].astype(int)) == 0 and depth[inside].min() > depth[0, 0]
    clip = sample_scene(3, "train", 0, clip=True)
    assert render(clip, 32).shape == (FRAMES, 32, 32, 3) and render_depth(clip, 32).shape == (FRAMES, 32, 32)


def test_a_blink_is_seen_in_the_frames_a_model_is_shown():
    for phase in ("all", "first", "second"):
        visible = Thing("ring", "red", "small", 0.5, 0.5, motion="blinks", phase=phase).track(FRAMES).visible
        assert 0 < visible[list(SEEN)].sum() < len(SEEN)


def test_frames_without_their_order_are_those_of_the_reversed_clip():
    for scene in scenes(count=60)[60:]:
        frames = render(scene, 32).astype(int)[list(SEEN)]
        backwards = render(reversed_in_time(scene), 32).astype(int)[list(SEEN)][::-1]
        assert np.abs(frames - backwards).max() <= 1
        assert is_valid(reversed_in_time(scene)) and reversed_in_time(reversed_in_time(scene)) == scene


def test_only_needs_order_answers_change_in_the_reversed_clip():
    flipped = Counter()
    for scene, turn in asked():
        if scene.is_clip:
            same = true_answer(reversed_in_time(scene), turn.question) == turn.answer
            assert same != turn.needs_order, (scene, turn)
            flipped[turn.type] += turn.needs_order
    assert flipped["motion"] > 100 and flipped["order"] > 50


def test_motions_are_symmetric_in_time():
    counts: Counter = Counter()
    for i in range(1000):
        scene = sample_scene(5, "train", i, clip=True)
        counts.update((thing.motion, thing.phase) for thing in scene.events)
        counts["nothing"] += not scene.events
    for (motion, phase), count in [item for item in counts.items() if item[0] != "nothing"]:
        other = counts[OPPOSITE.get(motion, motion), OPPOSITE.get(phase, phase)]
        assert abs(count - other) < 4 * np.sqrt(count + other), (motion, phase)
    acting = Counter()
    for (motion, _), count in [item for item in counts.items() if item[0] != "nothing"]:
        acting[motion] += count
    assert len(acting) == 7 and max(acting.values()) < 1.6 * min(acting.values())
    assert 65 < counts["nothing"] < 135


def test_a_sibling_differs_in_exactly_one_thing():
    kinds = Counter()
    for i, scene in enumerate(scenes(count=150)):
        other = sibling(scene, np.random.default_rng(i))
        assert is_valid(other) and other.seed == scene.seed and len(other.things) == len(scene.things)
        attributes = ("colour", "shape", "size", "place", "motion", "phase")
        pairs = zip(scene.things, other.things, strict=True)
        changed = [
            (i, a) for i, (one, two) in enumerate(pairs) for a in attributes if getattr(one, a) != getattr(two, a)
        ]
        names = {attribute for _, attribute in changed}
        assert len(names) == 1, changed
        name = names.pop()
        if len(changed) == 2:  # a trade between two things
            (i, _), (j, _) = changed
            old = getattr(scene.things[i], name), getattr(scene.things[j], name)
            assert old == (getattr(other.things[j], name), getattr(other.things[i], name))
        kinds[name] += 1
    assert set(kinds) == {"colour", "shape", "size", "place", "motion", "phase"}


def test_a_family_has_four_different_captions():
    for clip in (False, True):
        for i in range(40):
            family = sample_family(3, i, clip)
            assert len({facts(scene) for scene in family}) == 4
            assert len({caption(scene, np.random.default_rng(0)) for scene in family}) == 4


def test_words_tell_all_there_is():
    for i, scene in enumerate(scenes(count=100)):
        for words in (caption(scene, np.random.default_rng(i)), description(scene, np.random.default_rng(i))):
            for thing in scene.things:
                told = [
                    thing.colour,
                    thing.shape,
                    thing.place,
                    thing.motion if scene.is_clip else None,
                    None if thing.scales else thing.size,
                ]
                assert all(fact in words for fact in told if fact), (words, thing)


def test_text_documents_hold_every_type():
    rng = np.random.default_rng(0)
    types = Counter(turn.type for _ in range(400) for turn in text_document(rng))
    assert set(types) == {*QUESTIONS, "describe", "chat"}


def test_lists_tell_everything_and_are_asked_many_questions():
    rng = np.random.default_rng(0)
    lists = [text_document(rng, lists=1.0) for _ in range(200)]
    assert {len(turns) for turns in lists} == {LIST_TURNS + 1}
    assert {turn.type for turns in lists for turn in turns[:-1]} == set(LOOK_UPS)
    assert {turns[-1].type for turns in lists} == {"describe"}
    for first, *_ in lists:
        lines = first.question.split("\n")[0].rstrip(".").split(". ")
        assert 2 <= len(lines) <= 3
        for line in lines:
            where, _, noun = line.partition(": ")
            assert any(fact in where for fact in (*PLACES, *MOTIONS)) and noun.split()[-1] in SHAPES
            scales = "grows" in where or "shrinks" in where
            assert noun.split()[-2] in COLOURS and (noun.split()[0] in SIZES) != scales


def test_lists_are_a_share_of_the_text_alone(world, tmp_path):
    lists = build_world(replace(TINY, lists=1.0), tmp_path, workers=1, progress=False)
    rows = json.loads((lists / "text.json").read_text())
    assert {len(row["conversations"]) for row in rows} == {2 * (LIST_TURNS + 1)}
    for name in ("stage1", "stage2", "test"):
        assert (lists / f"{name}.json").read_bytes() == (world / f"{name}.json").read_bytes()
    with pytest.raises(ConfigError, match="lists is 1.5: use a number from 0 to 1"):
        replace(TINY, lists=1.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(TINY, tmp_path_factory.mktemp("world"), workers=1, progress=False)


def test_same_seed_same_bytes(world, tmp_path):
    assert digest(build_world(TINY, tmp_path, workers=2, progress=False)) == digest(world)
    assert list(tmp_path.iterdir()) == [world_folder(TINY, tmp_path)]
    assert world_folder(TINY).name == world.name != world_folder(replace(TINY, seed=1)).name


def test_the_generator_is_the_one_of_its_version():
    """If these words and pixels are meant to change, raise VERSION, so that nobody meets an old cache."""
    made = hashlib.sha256()
    for i in range(3):
        for clip in (False, True):
            scene, rng = sample_scene(0, "train", i, clip), generator(0, "train", i, clip, stream=1)
            made.update(render(scene, 32).tobytes())
            said = [describe(scene, rng), *turns(scene, rng, 6), *turns(scene, rng, 6, often=OFTEN_SEEN)]
            made.update(repr(said).encode())
    made.update(repr(text_document(np.random.default_rng(0))).encode())
    assert (VERSION, made.hexdigest()[:16]) == (2, "72c4d449521ba2ee")


def test_the_committed_sample_is_that_of_its_preset(tmp_path):
    made = build_world(preset("sample").world, tmp_path, workers=1, progress=False)
    sample = Path(__file__).parents[1] / "data/sample"
    names = [{path.relative_to(folder) for path in folder.rglob("*.*")} for folder in (made, sample)]
    assert names[0] == names[1]
    for path in (*sample.glob("*.json"), *sample.rglob("*.png")):  # another version of FFmpeg may write other clips
        assert path.read_bytes() == (made / path.relative_to(sample)).read_bytes(), path


def test_a_larger_split_keeps_its_first_scenes(world, tmp_path):
    larger = build_world(replace(TINY, images=8, clips=5, test=4), tmp_path, workers=1, progress=False)
    for name in ("images/train/000005.png", "videos/train/000003.mp4", "images/test/000002.png"):
        assert (world / name).read_bytes() == (larger / name).read_bytes()
    old, new = (json.loads((folder / "test.json").read_text()) for folder in (world, larger))
    assert all(record in new for record in old)


def test_files_are_in_llava_format(world):
    expected = {"text": 8, "align_images": 8, "align_clips": 4, "stage1": 10, "stage2": 10 + 10 // 19}
    for name in FILES:
        text = (world / f"{name}.json").read_text()
        records = json.loads(text)
        assert text.isascii() and len(load_records(world / f"{name}.json")) == len(records)
        assert len(records) == expected.get(name, len(records)) > 0
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            answers = record["conversations"][1::2]
            assert len(answers) == len(record["types"]) == len(record["needs_order"])
            for kind in {"image", "video", "depth"} & set(record):
                assert (world / record[kind]).is_file()
            if name in ("validation", "test", "compositional"):
                assert len(answers) == 1 and record["types"] != ["describe"]
    assert {record["family"] for record in json.loads((world / "align_images.json").read_text())} == {0, 1}


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(path, frames, fps):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("minivllava.data.write_media.write_video", stop)
        build_world(TINY, tmp_path, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_removed_a_day_later(tmp_path, monkeypatch):
    monkeypatch.setattr("minivllava.data.build._write", lambda *_: None)
    for name in (".shapes-0123456789-old", ".shapes-0123456789-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".shapes-0123456789-old", (time.time() - 25 * 3600,) * 2)
    folder = build_world(TINY, tmp_path, progress=False)
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".shapes-0123456789-new", folder]


def test_a_second_build_reuses_the_first(world, monkeypatch):
    monkeypatch.setattr("minivllava.data.build._write", lambda *_: pytest.fail("built again"))
    assert build_world(TINY, world.parent, progress=False) == world


def test_two_builds_at_once_do_not_hurt_each_other(world, tmp_path):
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=build_world, args=(TINY, tmp_path, 1, False)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    assert list(tmp_path.iterdir()) == [world_folder(TINY, tmp_path)]
    assert digest(world_folder(TINY, tmp_path)) == digest(world)


@pytest.mark.parametrize("wrong", [{"size": 33}, {"size": 8}, {"frames": 4}])
def test_impossible_worlds_are_refused(wrong):
    with pytest.raises(ConfigError, match="use"):
        replace(TINY, **wrong)
