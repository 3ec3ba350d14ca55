"""Conversations to ids and labels: templates, what is learned, placeholders, and the tokenizer."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_tokenizer, tiny_vllava

from minivllava.chat import answer_prompts
from minivllava.data.conversation import (
    IGNORE,
    TEMPLATES,
    VISUAL,
    encode_conversation,
    placeholders,
    template,
    visual_kinds,
)
from minivllava.data.dataset import ConversationDataset, collate
from minivllava.data.records import load_records, records_of
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError, ContextLengthError, DataError
from minivllava.models.generate import Sampling

TOKENIZER = tiny_tokenizer()
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def encode(name: str, *values: str, visual_tokens=(), **options):
    return encode_conversation(turns(*values), TOKENIZER, template(name), visual_tokens, **options)


def shown(ids: list[int], special: bool = True) -> str:
    """Ids as text, special tokens and runs of visual tokens (<12>) shown."""
    pieces, run, rest = [], 0, []
    for token in [*ids, None]:
        if token == VISUAL:
            run += 1
            continue
        if run:
            pieces += [TOKENIZER.backend.decode(rest, skip_special_tokens=False), f"<{run}>"]
            run, rest = 0, []
        rest += [] if token is None else [token]
    return "".join([*pieces, TOKENIZER.backend.decode(rest, skip_special_tokens=False)])


def learned(ids: list[int], labels: list[int]) -> list[str]:
    """The learned stretches, as text."""
    assert len(ids) == len(labels)
    stretches, last = [], IGNORE
    for token, label in zip(ids, labels, strict=True):
        assert label in (IGNORE, token), "a label is its own token, or nothing"
        if label != IGNORE:
            stretches = stretches if last != IGNORE else [*stretches, []]
            stretches[-1].append(token)
        last = label
    return [shown(stretch) for stretch in stretches]


# templates and masks, checked by hand


def test_v1_learns_answers_and_the_ends_of_turns():
    ids, labels = encode("v1", "<image>\nWhat colour?", "red", "How many?", "two", visual_tokens=[4])
    assert shown(ids) == (f"<s>{SYSTEM}USER: <4>\nWhat colour? ASSISTANT: red</s>USER: How many? ASSISTANT: two</s>")
    assert learned(ids, labels) == [" red</s>", " two</s>"]
    assert ids.count(TOKENIZER.eos) == 2 and ids.count(TOKENIZER.bos) == 1


def test_short_is_v1_without_the_system_sentence():
    ids, labels = encode("short", "<video>\nWhat moves?", "it", visual_tokens=[16])
    assert shown(ids) == "<s>USER: <16>\nWhat moves? ASSISTANT: it</s>"
    assert learned(ids, labels) == [" it</s>"]


def test_llava_v1_speaks_of_a_human():
    ids, _ = encode("llava_v1", "Hi", "Hello")
    assert shown(ids).startswith("<s>A chat between a curious human and an artificial intelligence assistant.")
    assert "to the human's questions. USER: Hi ASSISTANT: Hello</s>" in shown(ids)


def test_plain_keeps_placeholder_and_caption():
    ids, labels = encode("plain", "Describe the picture.\n<image>", "a red square", visual_tokens=[4])
    assert shown(ids) == "<s><4>a red square\n"
    assert learned(ids, labels) == ["a red square\n"]


def test_a_prompt_ends_where_the_answer_begins():
    prompt, labels = encode("v1", "<image>\nWhat colour?", "red", "How many?", visual_tokens=[4])
    whole, _ = encode("v1", "<image>\nWhat colour?", "red", "How many?", "two", visual_tokens=[4])
    assert shown(prompt).endswith("</s>USER: How many? ASSISTANT:")
    assert whole[: len(prompt)] == prompt, "in training the answer follows the same ids as when it is asked"
    assert labels[-1] == IGNORE


def test_text_alone():
    ids, labels = encode("short", "Hello.", "Hello!")
    assert shown(ids) == "<s>USER: Hello. ASSISTANT: Hello!</s>" and learned(ids, labels) == [" Hello!</s>"]


def test_several_visuals_in_any_order():
    ids, labels = encode(
        "short",
        "<video><image>\nCompare <video> with it.",
        "same",
        "And <image>?",
        "no",
        visual_tokens=[8, 4, 6, 2],
    )
    assert shown(ids) == "<s>USER: <12>\nCompare <6> with it. ASSISTANT: same</s>USER: And <2>? ASSISTANT: no</s>"
    assert learned(ids, labels) == [" same</s>", " no</s>"]
    assert placeholders("<video> a <image><image> <vide> b<video>") == ["video", "image", "image", "video"]
    assert visual_kinds([{"value": "<video>"}, {"value": "no"}, {"value": "<image>"}]) == ["video", "image"]


def test_unknown_template_lists_those_there_are():
    with pytest.raises(ConfigError, match="'v2'.*v1, llava_v1, short, plain"):
        template("v2")
    assert list(TEMPLATES) == ["v1", "llava_v1", "short", "plain", "chat"]


# what does not fit


def test_placeholder_without_a_file():
    with pytest.raises(DataError, match="photo.json: record 3.*<video> has no file"):
        encode("v1", "<image> <video>", "a", visual_tokens=[4], where="photo.json: record 3")


def test_file_without_a_placeholder():
    with pytest.raises(DataError, match="record 3.*2 file.*without a placeholder"):
        encode("v1", "<image>", "a", visual_tokens=[4, 4, 16], where="record 3")


def test_placeholder_in_an_answer():
    with pytest.raises(DataError, match="turn 2, an answer"):
        encode("v1", "Show me", "<image>", visual_tokens=[4])


@pytest.mark.parametrize("speakers", [("gpt", "human"), ("human", "human"), ("human", "system")])
def test_turns_that_do_not_alternate(speakers):
    spoken = [{"from": speaker, "value": "x"} for speaker in speakers]
    with pytest.raises(DataError, match="alternate"):
        encode_conversation(spoken, TOKENIZER, template("v1"))


def test_too_long_for_the_context():
    ids, _ = encode("short", "<video>\nWhat?", "this", visual_tokens=[64])
    assert encode("short", "<video>\nWhat?", "this", visual_tokens=[64], context=len(ids))[0] == ids
    with pytest.raises(ContextLengthError, match=f"record 7 takes {len(ids)} tokens, 64 of them visual.*fewer frames"):
        encode("short", "<video>\nWhat?", "this", visual_tokens=[64], context=len(ids) - 1, where="record 7")


def test_visual_tokens_are_counted_before_their_ids_are_made():
    with pytest.raises(ContextLengthError, match="takes 1000000000000 visual tokens.* holds 99: use fewer frames"):
        encode("short", "<video>\nWhat?", visual_tokens=[10**12], context=99)


# records


def record_file(folder, *records, name="data.json"):
    file = folder / name
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


GOOD = {"id": 1, "image": "a.png", "conversations": turns("<image>\nWhat?", "this")}


def test_records_keep_visuals_in_the_order_of_their_placeholders(tmp_path):
    mixed = {
        "image": ["a.png", "b.png"],
        "video": "c.mp4",
        "conversations": turns("<image><video> x <image>", "y"),
    }
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in (GOOD, {"conversations": turns("a\u2028b", "c")}))
    (tmp_path / "b.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    rows = load_records([record_file(tmp_path, mixed), tmp_path / "b.jsonl"], tmp_path / "media")
    assert [row["visuals"] for row in rows] == [
        [str(tmp_path / "media" / name) for name in ("a.png", "c.mp4", "b.png")],
        [str(tmp_path / "media/a.png")],
        [],
    ]
    assert rows[2]["conversations"][0]["value"] == "a\u2028b"
    assert load_records(tmp_path / "b.jsonl")[0]["visuals"] == [str(tmp_path / "a.png")]
    in_memory = records_of([mixed, GOOD], tmp_path / "media").remove_columns(["id", "where"])
    assert in_memory[:] == rows.select([0, 1]).remove_columns(["id", "where"])[:]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"conversations": [', "data.json: broken JSON at line 1"),
        ('{"id": 1}\n{"id": ', "data.json"),
        ("[]", "data.json holds no records"),
        ("", "data.json holds no records"),
        ("[3]", "data.json: record 0 is no object"),
        ('[{"id": 5}]', r"data.json: record 0 \(id 5\): 'conversations' must be"),
        ('[{"conversations": [{"from": "human"}]}]', "'conversations' must be"),
        ('[{"conversations": [{"from": "human", "value": 3}]}]', "'conversations' must be"),
        ('[{"conversations": "hello"}]', "'conversations' must be"),
        ('[{"conversations": [{"from": "gpt", "value": "x"}]}]', "turn 1 is from 'gpt'"),
        (
            '[{"image": {"a": 1}, "conversations": [{"from": "human", "value": "x"}]}]',
            "'image' must be a path",
        ),
        (
            '[{"image": "a.png", "conversations": [{"from": "human", "value": "x"}]}]',
            "0 <image> .* 1 image file",
        ),
        ('[{"conversations": [{"from": "human", "value": "<video>"}]}]', "1 <video> .* 0 video file"),
        (json.dumps(GOOD, indent=1), "data.json: broken JSON at line 1: .*mend it there.* one list of records"),
        pytest.param("[" * 100_000, "data.json: from line 1 on it holds lists within lists", id="deep"),
        (r'[{"conversations": [{"from": "human", "value": "\ud800"}]}]', "data.json: .* half a character"),
        (json.dumps([GOOD | {"types": "colour"}]), "record 0.*: 'types' must be a list of strings"),
        (json.dumps([GOOD | {"needs_order": 3}]), "record 0.*: 'needs_order' must be a list of true or false"),
        (json.dumps([GOOD | {"types": ["a", "b"]}]), "record 0.*: 'types' is 2 long and there are 1 answers"),
        (json.dumps([GOOD | {"needs_order": [True] * 3}]), "record 0.*: 'needs_order' is 3 long"),
        (json.dumps([GOOD | {"family": "x"}]), "record 0.*: 'family' must be a whole number"),
        (json.dumps([GOOD | {"image": ""}]), "record 0.*: 'image' must be a path .* none of them empty"),
        (json.dumps([{"conversations": turns("Show it", "<image>")}]), "record 0: turn 2, an answer, holds a"),
    ],
)
def test_broken_records_are_named(tmp_path, text, message):
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_records(file)


def test_record_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="nothing.json cannot be read"):
        load_records(tmp_path / "nothing.json")
    (tmp_path / "latin.json").write_bytes(b'[{"id": "\xe9"}]')
    with pytest.raises(DataError, match="latin.json cannot be read"):
        load_records(tmp_path / "latin.json")
    (tmp_path / "bom.json").write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert len(load_records(tmp_path / "bom.json")) == 1


def test_collate_pads_on_the_right_and_mixes_modalities(tmp_path):
    clip = {"video": "b.mp4", "conversations": turns("<video>\nWhich way?", "left")}
    text = {"conversations": turns("Hi", "Hello")}
    records = load_records(record_file(tmp_path, GOOD, clip, text))
    config = tiny_config(len(TOKENIZER))
    data = ConversationDataset(
        records, TOKENIZER, config, lambda path, kind: torch.full((1, 16), float(kind == "video"))
    )
    batch = collate([data[0], data[1], data[2]])
    assert batch.input_ids.dtype == torch.int64 and batch.input_ids.shape == batch.labels.shape
    counts = (batch.input_ids == VISUAL).sum(1)
    assert counts.tolist() == [4, 16, 0]
    assert [float(v[0, 0]) for v in batch.visuals] == [0.0, 1.0]
    length = len(data[2]["input_ids"])
    assert batch.input_ids[2, length:].eq(0).all() and batch.labels[2, length:].eq(IGNORE).all()
    assert data.modalities() == {"image": 1, "video": 1, "text": 1}
    short = replace(config, video=replace(config.video, frames=2))
    short = ConversationDataset(records, TOKENIZER, short, lambda path, kind: None)
    assert (short.input_ids[1] == VISUAL).sum() == 8


def test_records_without_an_answer_teach_nothing(tmp_path):
    records = load_records(record_file(tmp_path, {"conversations": turns("Hello?")}))
    with pytest.raises(DataError, match="no answer to learn"):
        ConversationDataset(records, TOKENIZER, tiny_config(len(TOKENIZER)), lambda path, kind: None)


# tokenizer


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert max(ids, default=0) < len(TOKENIZER)


def test_every_byte_and_every_script_comes_back():
    control = "".join(map(chr, range(1, 256)))
    for text in (
        control,
        "\0 nul",
        "тёмно-синий",
        "这个红色的圆在哪里？",
        "👩‍👩‍👧 🏳️‍🌈",
        "  two  spaces\n\n",
        "ﷺ\u202e",
    ):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    ids, _ = encode("short", "a\0b <image> 圆?", "тём\0но", visual_tokens=[1])
    assert TOKENIZER.decode([i for i in ids if i != VISUAL]) == "USER: a\0b  圆? ASSISTANT: тём\0но"


def test_special_tokens_and_their_places(tmp_path):
    assert (TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos) == (0, 1, 2)
    assert TOKENIZER.eot == len(TOKENIZER) - 1, "the text encoder pools at the largest id"
    assert TOKENIZER.decode([1, *TOKENIZER.encode("red"), 2, TOKENIZER.eot]) == "red"
    rows = TOKENIZER.pad_texts(["red", "a long text that does not fit into it"], context=8)
    assert rows.shape == (2, 8)
    assert rows[:, 0].tolist() == [1, 1] and rows.argmax(1).tolist() == [rows[0].ne(0).sum() - 1, 7]
    TOKENIZER.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode("red left") == TOKENIZER.encode("red left") and len(again) == len(TOKENIZER)
    with pytest.raises(CheckpointError, match="missing"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CheckpointError, match="broken.json is no tokenizer"):
        Tokenizer.load(tmp_path / "broken.json")


def test_prompts_of_different_lengths_are_answered_together():
    model = tiny_vllava()
    model.tokenizer.eos = -1  # never stop
    prompts = [encode("short", text)[0] for text in ("Hi", "What colour is the square?")]
    together = answer_prompts(model, prompts, [[], []], sampling=Sampling(5))
    assert together == [answer_prompts(model, [prompt], [[]], sampling=Sampling(5))[0] for prompt in prompts]
