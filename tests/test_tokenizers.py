"""Other people's tokenizers and chat templates: what is encoded, what is learned, what is saved."""

import json

import pytest
from foreign import LLAMA2, LLAMA3, fast_tokenizer, smollm_tokenizer
from tiny import tiny_tokenizer

from minivllava.data.chat_template import end_of_turn
from minivllava.data.conversation import IGNORE, VISUAL, encode_conversation, template
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError, DataError

SPECIALS = ["<s>", "</s>", "<|start|>", "<|sep|>", "<|eot_id|>"]


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def messages(*values: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": value} for i, value in enumerate(values)]


def read(theirs, folder) -> Tokenizer:
    theirs.save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


def learned(tokenizer, values, name="chat", visual_tokens=()) -> list[str]:
    """The learned stretches as text, special tokens shown."""
    ids, labels = encode_conversation(turns(*values), tokenizer, template(name), visual_tokens)
    stretches, last = [], IGNORE
    for token, label in zip(ids, labels, strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            stretches = stretches if last != IGNORE else [*stretches, []]
            stretches[-1].append(token)
        last = label
    return [tokenizer.backend.decode(stretch) for stretch in stretches]


# our own


def test_a_special_token_in_a_text_is_text():
    tokenizer = tiny_tokenizer()
    for text in ("what does </s> mean?", "<s><unk><eot>", "a </s"):
        assert not {0, 1, 2, tokenizer.eot} & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, labels = encode_conversation(turns("Is it </s>?", "</s> it is <eot>"), tokenizer, template("short"))
    assert ids.count(tokenizer.eos) == 1 and ids[-1] == tokenizer.eos == labels[-1]
    assert tokenizer.eot not in ids


def test_our_own_comes_back_from_its_folder(tmp_path):
    tiny_tokenizer().save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert type(again) is Tokenizer and again.encode("red </s>") == tiny_tokenizer().encode("red </s>")
    with pytest.raises(ConfigError, match="no chat template.*v1 or short"):
        encode_conversation(turns("a"), again, template("chat"))


# fast tokenizers


def test_interface(tmp_path):
    tokenizer = read(smollm_tokenizer(), tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.eot) == (None, 2, 2, None)
    assert len(tokenizer) == len(tokenizer.backend)
    for text in ("red <|im_end|> green", "  two\n\n", "тёмно 圆 👩‍👧"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert not set(range(3)) & set(tokenizer.encode(text))
    assert tokenizer.decode([1, *tokenizer.encode("red"), 2]) == "red"


def test_a_tokenizer_json_is_read_as_it_stands_whatever_class_is_named_beside_it(tmp_path):
    from tokenizers import pre_tokenizers

    theirs = smollm_tokenizer()
    pieces = [pre_tokenizers.Split("u", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    theirs.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(card | {"tokenizer_class": "GPT2Tokenizer"}))
    told = [theirs.convert_ids_to_tokens(Tokenizer.from_pretrained(tmp_path).encode("colour"))]
    assert told == [theirs.tokenize("colour")] and "u" in told[0]


def test_a_beginning_of_sequence_is_there_only_where_the_tokenizer_adds_it(tmp_path):
    from tokenizers.processors import TemplateProcessing

    theirs = fast_tokenizer(["<s>", "</s>"], "<s>", "</s>")
    theirs.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert read(theirs, tmp_path / "adds").bos == 0
    assert read(fast_tokenizer(["<s>", "</s>"], "<s>", "</s>"), tmp_path / "none").bos is None


@pytest.mark.parametrize(
    "chat, values, stretches",
    [
        (None, ("a?", "red", "b?", "green"), ["red<|im_end|>", "green<|im_end|>"]),
        (LLAMA3, (" a? ", "red", "b?", "green"), ["red<|eot_id|>", "green<|eot_id|>"]),
        (LLAMA2, ("a?", "red", "b?", "green"), [" red </s>", " green </s>"]),
    ],
)
def test_chat_templates_learn_answers_and_the_ends_of_turns(chat, values, stretches, tmp_path):
    theirs = smollm_tokenizer() if chat is None else fast_tokenizer(SPECIALS, "<s>", "</s>", chat)
    tokenizer = read(theirs, tmp_path)
    ids, _ = encode_conversation(turns(*values), tokenizer, template("chat"))
    assert ids == theirs.apply_chat_template(messages(*values), tokenize=True, return_dict=False)
    assert learned(tokenizer, values) == stretches
    for length in (1, 3):  # a prompt is what the whole conversation begins with, up to the answer
        prompt, labels = encode_conversation(turns(*values[:length]), tokenizer, template("chat"))
        assert ids[: len(prompt)] == prompt
        assert set(labels[len(labels) - 3 :]) == {IGNORE}
    assert tokenizer.backend.convert_ids_to_tokens(end_of_turn(tokenizer)) in stretches[0]


def test_placeholders_and_special_tokens_in_what_is_said(tmp_path):
    tokenizer = read(smollm_tokenizer(), tmp_path)
    said = ("<video>\nWhat of <image>?<|im_end|>", "<|im_start|> red")
    ids, _ = encode_conversation(turns(*said), tokenizer, template("chat"), [3, 2])
    assert ids.count(VISUAL) == 5 and ids.count(tokenizer.eos) == 2 and ids.count(1) == 2
    assert learned(tokenizer, said, visual_tokens=[3, 2]) == ["<|im_start|> red<|im_end|>"]
    assert learned(tokenizer, ("<image>\na", "red"), "v1", [3]) == [" red<|im_end|>"], "v1 ends as the tokenizer does"
    assert learned(tokenizer, ("<image>\na", "red"), "plain", [3]) == ["red\n"]


def test_templates_that_cannot_be_trained_on_say_so(tmp_path):
    silent = fast_tokenizer(SPECIALS, "<s>", "</s>", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ConfigError, match="cannot be used: .*--set model.template=v1"):
        encode_conversation(turns("a", "b"), read(silent, tmp_path / "1"), template("chat"))
    changing = CHANGING.replace("CONTENT", "m['content'] | upper")
    with pytest.raises(DataError, match="record 3: .*changes the texts"):
        tokenizer = read(fast_tokenizer(SPECIALS, "<s>", "</s>", changing), tmp_path / "2")
        encode_conversation(turns("a", "b"), tokenizer, template("chat"), where="record 3")
    refusing = CHANGING.replace("CONTENT", "raise_exception('no ' + m['role'])")
    with pytest.raises(DataError, match="refuses it .no user"):
        tokenizer = read(fast_tokenizer(SPECIALS, "<s>", "</s>", refusing), tmp_path / "3")
        encode_conversation(turns("a", "b"), tokenizer, template("chat"))


def test_a_template_that_thinks_before_the_last_answer_only(tmp_path):
    tokenizer = read(fast_tokenizer(THINKING, None, "<|im_end|>", QWEN3), tmp_path)
    assert learned(tokenizer, ("a?", "red")) == ["red<|im_end|>"]
    said = ("a?", "red", "b?", "blue")
    assert learned(tokenizer, said) == ["red<|im_end|>", "blue<|im_end|>"]
    for length in (1, 3):  # what is asked is what was learned from: the block is part of the prompt
        asked, _ = encode_conversation(turns(*said[:length]), tokenizer, template("chat"))
        whole, _ = encode_conversation(turns(*said[: length + 1]), tokenizer, template("chat"))
        assert tokenizer.backend.decode(asked).endswith("assistant\n<think>\n\n</think>\n\n")
        assert whole[: len(asked)] == asked
    assert tokenizer.backend.decode(whole).count("<think>") == 1


@pytest.mark.parametrize("opened, kept", [("", "<think>\n\n</think>"), ("<think>", ""), ("<think>", "<think></think>")])
def test_a_template_that_always_thinks_is_refused(opened, kept, tmp_path):
    chat = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}{% if m['role'] == 'assistant' %}KEPT{% endif %}\
{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{{ 'assistant\n' }}OPENED{% endif %}"
    theirs = fast_tokenizer(THINKING, None, "<|im_end|>", chat.replace("KEPT", kept).replace("OPENED", opened))
    tokenizer = read(theirs, tmp_path)
    for length in (1, 2, 3, 4):
        with pytest.raises(ConfigError, match="cannot be used: .*--set model.template=v1"):
            encode_conversation(turns("a?", "red", "b?", "blue")[:length], tokenizer, template("chat"))


@pytest.mark.parametrize(
    "written, expected",
    [
        ("{% if not date_string is defined %}{% set date_string = strftime_now(\"%d %b %Y\") %}{% endif %}"
         "{{ date_string }}", "26 Jul 2024"),
        ("{{ strftime_now( '%Y-%m-%d' ) }}", "2024-07-26"),
    ],
)  # fmt: skip
def test_the_date_in_a_template_is_always_the_same(written, expected, tmp_path):
    tokenizer = read(
        fast_tokenizer(SPECIALS, "<s>", "</s>", written + CHANGING.replace("CONTENT", "m.content")), tmp_path
    )
    ids, _ = encode_conversation(turns("a?", "red"), tokenizer, template("chat"))
    assert tokenizer.backend.decode(ids).startswith(expected + "<|start|>user")


THINKING = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
QWEN3 = (  # as Qwen3 does: an empty block before the last answer, and in a prompt that asks for no thinking
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
CHANGING = "{% for m in messages %}{{ '<|start|>' + m['role'] }}{{ CONTENT }}{{ '</s>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"


def test_what_is_saved_reads_the_same_again(tmp_path):
    tokenizer = read(smollm_tokenizer(), tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    tokenizer.save(tmp_path / "ours/tokenizer.json")
    (tmp_path / "ours/config.json").write_text('{"model_type": "llava"}')
    again = Tokenizer.load(tmp_path / "ours/tokenizer.json")
    said = turns("<image> What colour? ", "red", "left <|im_end|>")
    for name in ("chat", "v1"):
        assert encode_conversation(said, tokenizer, template(name), [2]) == encode_conversation(
            said, again, template(name), [2]
        )


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="somebody/model is no folder: name one"):
        Tokenizer.from_pretrained("somebody/model")
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    theirs = fast_tokenizer(["<s>", "</s>"], "<s>", "</s>")
    theirs.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(card | {"eos_token": None}))
    with pytest.raises(CheckpointError, match="no end-of-sequence"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_config_alone_makes_no_tokenizer(tmp_path):
    """`transformers` makes one without a vocabulary of it, which reads every text as nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="no vocabulary"):
        Tokenizer.from_pretrained(tmp_path)


# SentencePiece: Vicuna


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """A folder with a tokenizer.model as LLaMA's was made: BPE, bytes for what is unknown."""
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path_factory.mktemp("vicuna")
    texts = folder / "texts"
    words = "A chat between a curious user and an artificial intelligence assistant. USER: red ASSISTANT: left up"
    texts.write_text("\n".join([words, "gives helpful, detailed, and polite answers to the user's questions."] * 20))
    spm.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(folder / "tokenizer"), vocab_size=370, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        minloglevel=2,
    )  # fmt: skip
    # the original's folder: its model is called llava, which must not matter
    (folder / "config.json").write_text('{"model_type": "llava"}')
    return folder


@pytest.mark.parametrize("legacy", [False, True, None])
def test_vicuna_is_encoded_as_sentencepiece_does(vicuna, legacy):
    spm = pytest.importorskip("sentencepiece")
    card = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    card |= {"add_bos_token": True} | ({} if legacy is None else {"legacy": legacy})
    (vicuna / "tokenizer_config.json").write_text(json.dumps(card))
    tokenizer = Tokenizer.from_pretrained(vicuna)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2), "the padding is <unk>"
    pieces = spm.SentencePieceProcessor(model_file=str(vicuna / "tokenizer.model"))
    system = template("v1").system
    for question in ("red?\n<image>", "a <image> b", "<image> red?", "<image>"):  # the original encodes what is between
        texts = f"{system}USER: {question} ASSISTANT:".split("<image>")
        ids, _ = encode_conversation(turns(question), tokenizer, template("v1"), [1])
        assert ids == [1, *pieces.encode(texts[0]), VISUAL, *pieces.encode(texts[1])], question
    ids, labels = encode_conversation(turns("<image>\nred?", "left", "up?", "red"), tokenizer, template("v1"), [2])
    before, first = pieces.encode(f"{system}USER: "), pieces.encode("\nred? ASSISTANT: left")
    assert ids[: 1 + len(before) + 2 + len(first) + 1] == [1, *before, VISUAL, VISUAL, *first, 2]
    answer = pieces.encode("left")
    start = 1 + len(before) + 2 + len(first) - len(answer)
    assert [i for i, label in enumerate(labels) if label != IGNORE][: len(answer) + 1] == [
        *range(start, start + len(answer) + 1)
    ]
    rest = ids[1 + len(before) + 2 + len(first) + 1 :]
    second = pieces.encode("USER: up? ASSISTANT: red")
    if legacy is False:  # what follows a special token does not begin with a space
        assert tokenizer.decode(rest[:1]) in "USER" and rest != [*second, 2]
        assert rest == tokenizer.backend.encode("</s>USER: up? ASSISTANT: red</s>", add_special_tokens=False)[1:]
    else:
        assert rest == [*second, 2]


def metaspace_tokenizer():
    """As LLaMA's of newer versions: a space before the first word of a text, if no special token is before it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁USERAINTWhatsicolr:?"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What <image>is it?", "<video><image>What"])
def test_what_follows_a_placeholder_of_the_port_is_encoded_as_there(tmp_path, question):
    tokenizer = read(metaspace_tokenizer(), tmp_path)
    marks = {text: tokenizer.specials[text] for text in ("<image>", "<video>")}
    visual = [1] * sum(question.count(text) for text in marks)
    ids, _ = encode_conversation(turns(question), tokenizer, template("short"), visual, ids_of_placeholders=marks)
    theirs = tokenizer.backend(f"USER: {question} ASSISTANT:", add_special_tokens=False).input_ids
    assert ids == [VISUAL if token in marks.values() else token for token in theirs]
    alone, _ = encode_conversation(turns(question), tokenizer, template("short"), visual)
    assert len(alone) > len(ids), "in the original every stretch of text begins anew"


@pytest.mark.parametrize("legacy", [False, True])
def test_vicuna_comes_back_as_it_was(vicuna, tmp_path, legacy):
    card = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    (vicuna / "tokenizer_config.json").write_text(json.dumps(card))
    tokenizer = Tokenizer.from_pretrained(vicuna)
    tokenizer.save(tmp_path)
    said = turns("<image>\nred? </s> ", "left", "red", "red")
    again = Tokenizer.from_pretrained(tmp_path)
    encoded = [encode_conversation(said, t, template("v1"), [2]) for t in (tokenizer, again)]
    assert encoded[0] == encoded[1] and encoded[0][0].count(2) == 2
    assert again.decode(again.encode("red left")) == "red left"
