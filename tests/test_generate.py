"""Generation with the KV cache, conversations that go on, several at once, and activation checkpointing."""

import dataclasses
import math
import weakref
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_vllava, training, write_records
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import minivllava.models.compiled_layers as compiled_layers
import minivllava.models.decoding as decoding
import minivllava.models.generate as generation
import minivllava.models.kv_cache as kv_cache
import minivllava.training.recompute as recompute
from minivllava.chat import Conversation, chat_batch
from minivllava.data.records import load_records
from minivllava.errors import CheckpointError, ConfigError, ContextLengthError, DataError, MediaError
from minivllava.models.generate import Sampling, generate
from minivllava.models.language import DecoderLayer, LanguageModel
from minivllava.models.vllava import VideoLLaVA
from minivllava.training.recompute import recomputing
from minivllava.training.stages import stage1

ROOT = Path(__file__).parents[1]
TINY = ROOT / "data/pretrained/tiny"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def language_model(**changes) -> LanguageModel:
    """A random model whose greedy answers vary."""
    torch.manual_seed(1)
    model = LanguageModel(dataclasses.replace(tiny_config().language, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def without_cache(model, prompt, stop, max_new_tokens) -> list[int]:
    """What each token would be if everything was read again for it."""
    answer, x = [], prompt[None]
    while len(answer) < max_new_tokens and x.shape[1] < model.config.context:
        token = model.logits(model(x)[:, -1]).argmax(-1)
        if token.item() in stop:
            break
        answer.append(token.item())
        x = torch.cat([x, model.embed(token[None])], dim=1)
    return answer


LENGTHS = torch.tensor([4, 60, 33, 1])


def batch(width: int = 32) -> torch.Tensor:
    return torch.randn(len(LENGTHS), int(LENGTHS.max()), width)  # padding is noise: nobody may read it


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_answers_are_the_uncached_ones(kv_heads):
    """Greedy, short and long prompts in one batch, grouped-query attention, rows that stop at different times."""
    model, prompts = language_model(kv_heads=kv_heads), batch()
    free = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    stop = {free[0][3], free[1][11], free[2][7]}
    answers = generate(model, prompts, LENGTHS, stop=stop, sampling=Sampling(20))
    assert len({len(answer) for answer in answers}) > 2, "rows stop at different times"
    for prompt, length, answer, whole in zip(prompts, LENGTHS, answers, free, strict=True):
        assert answer == without_cache(model, prompt[:length], stop, 20)
        assert whole == without_cache(model, prompt[:length], (), 20)


def test_a_row_answers_as_it_would_alone():
    """Up to the end of the context too: a long prompt beside it costs a short one no token."""
    model, prompts = language_model(context=64), batch()
    answers = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(1000))
    assert [len(answer) for answer in answers] == [60, 4, 31, 63]
    for row, length in enumerate(LENGTHS):
        alone = generate(model, prompts[row : row + 1, :length], LENGTHS[row : row + 1], (), Sampling(1000))
        assert alone == [answers[row]]


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_every_token_streams_whoever_looks_ahead(monkeypatch, ahead):
    model, prompts = language_model(), batch()
    expected = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    stop = {expected[0][3], expected[1][11]}
    monkeypatch.setitem(generation.AHEAD, "cpu", ahead)
    seen: list[list[int]] = []
    answers = generate(model, prompts, LENGTHS, stop=stop, sampling=Sampling(20), on_token=seen.append)
    cut = [next((i for i, token in enumerate(row) if token in stop), 20) for row in expected]
    assert answers == [row[:length] for row, length in zip(expected, cut, strict=True)]
    for column, answer in zip(zip(*seen, strict=True), answers, strict=True):
        assert list(column) == answer + [-1] * (len(seen) - len(answer))
    assert len(seen) == min(20, max(cut) + 1), "nothing is shown once all rows are done"


def test_fixed_shapes_give_the_same_answers(monkeypatch):
    """What a GPU records and torch.compile compiles: every step reads the whole cache."""
    model, prompts = language_model(), batch()
    expected = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(30))
    shapes = set()

    def layer(self, x, cos, sin, cache):
        shapes.add((tuple(x.shape), tuple(cache.keys.shape), tuple(cache.mask.shape)))
        return DecoderLayer.__call__(self, x, cos, sin, cache)

    uses = {compiled_layers.one_token: layer, compiled_layers.prompt: DecoderLayer.__call__}
    monkeypatch.setattr(compiled_layers, "compiled", uses.get)
    assert generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(30), compiled=True) == expected
    assert len(shapes) == 1, "all steps and layers have one shape"


def test_one_compiled_layer_serves_all(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    steps, prompts_of = CompileCounter(), CompileCounter()
    compiled = {
        use: torch.compile(use, backend=backend, fullgraph=True, dynamic=dynamic)
        for use, backend, dynamic in (
            (compiled_layers.one_token, steps, None), (compiled_layers.prompt, prompts_of, True),
        )
    }  # fmt: skip
    monkeypatch.setattr(compiled_layers, "compiled", compiled.get)
    model, prompts = language_model(layers=3), batch()
    compilations = []
    for shorter in (0, 1, 13):
        lengths, given = (LENGTHS - shorter).clamp(min=1), prompts[:, : 60 - shorter].contiguous()
        expected = generate(model, given, lengths, stop=(), sampling=Sampling(12))
        assert generate(model, given, lengths, stop=(), sampling=Sampling(12), compiled=True) == expected
        compilations.append((steps.frame_count, prompts_of.frame_count))
    assert compilations[0][0] == 1 and len(set(compilations)) == 1, "later prompts of any length need no more"


class Replayed:
    """A `Recording` without a GPU: it computes the step anew, from the same memory into the same memory."""

    made = 0

    def __init__(self, step, positions, weights):
        Replayed.made += 1
        self.step, self.weights = step, weights
        self.tokens, self.positions = torch.zeros_like(positions), positions.clone()
        self.logits = step(self.tokens, self.positions)

    def replay(self):
        self.logits.copy_(self.step(self.tokens, self.positions))


@pytest.fixture
def recorded(monkeypatch) -> type[Replayed]:
    monkeypatch.setattr(decoding, "RECORDED", {"cpu"})
    monkeypatch.setattr(decoding, "Recording", Replayed)
    monkeypatch.setattr(Replayed, "made", 0)
    return Replayed


def test_recorded_steps_serve_later_answers(recorded, monkeypatch):
    model, prompts = language_model(), batch()
    asked = [(prompts, LENGTHS), (prompts.flip(0), LENGTHS.flip(0)), (prompts[:, :33], LENGTHS.clamp(max=33))]
    with monkeypatch.context() as plain:
        plain.setattr(decoding, "RECORDED", set())
        expected = [generate(model, *given, stop=(), sampling=Sampling(40)) for given in asked]
    assert [generate(model, *given, stop=(), sampling=Sampling(40)) for given in asked] == expected
    assert recorded.made == 1, "as many rows, and room enough"
    generate(model, prompts[:2], LENGTHS[:2], stop=(), sampling=Sampling(40))
    assert recorded.made == 2, "other rows, another cache"
    generate(model, *asked[0], stop=(), sampling=Sampling(4))
    assert recorded.made == 2, "short answers are not worth it"

    def other(*_):  # while one answer is being made, another one begins
        nested.append(generate(model, *asked[1], stop=(), sampling=Sampling(20)))

    nested: list = []
    assert generate(model, *asked[0], stop=(), sampling=Sampling(40), on_token=other) == expected[0]
    assert all(answers == [row[:20] for row in expected[1]] for answers in nested) and len(nested) == 40


def test_a_recording_is_made_anew_where_the_weights_lie_elsewhere(recorded):
    model, prompts = language_model(), batch()
    generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    model.head.weight = torch.nn.Parameter(-model.head.weight)
    expected = without_cache(model, prompts[0, :4], (), 20)
    assert generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))[0] == expected
    assert recorded.made == 2 and model in kv_cache._kept
    model.half().float()
    expected = without_cache(model, prompts[0, :4], (), 20)
    assert generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))[0] == expected
    made = recorded.made
    handle = model.norm.register_forward_hook(lambda *_: None)
    generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    assert recorded.made == made, "a hook would not run in a replay"
    handle.remove()


def test_training_frees_the_cache_that_the_last_answer_left(recorded, tmp_path):
    vllava, prompts = tiny_vllava(), batch()
    generate(vllava.language_model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    assert vllava.language_model in kv_cache._kept
    records = load_records(write_records(tmp_path))
    stage1(vllava, records, training(steps=1), tmp_path / "run", device="cpu", progress=False)
    assert vllava.language_model not in kv_cache._kept


def test_one_cache_at_a_time_is_kept(recorded, monkeypatch):
    model, prompts, alive = language_model(), batch(), []
    generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    kept = weakref.ref(kv_cache._kept[model])
    make = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *sizes: alive.append(kept()) or make(*sizes))
    generate(model, prompts[:1], LENGTHS[:1], stop=(), sampling=Sampling(4))
    assert alive == [None] and model not in kv_cache._kept


def test_the_places_of_quantised_weights_are_those_of_their_tensors():
    class Rounded(torch.nn.Module):
        """As torchao's tensors: nothing at their own address."""

        def __init__(self):
            super().__init__()
            self.numbers, self.scale = torch.ones(3), torch.ones(1)

        def __tensor_flatten__(self):
            return ["numbers", "scale"], None

    weight = Rounded()
    assert decoding._places(weight) == [weight.numbers.data_ptr(), weight.scale.data_ptr()]


def test_a_kept_cache_is_as_good_as_new(recorded):
    """What an answer left there is no longer seen, not even a number that is none."""
    model, prompts = language_model(), batch()
    expected = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20))
    with torch.inference_mode():
        for stored in (kv_cache._kept[model].keys, kv_cache._kept[model].values):
            stored.fill_(math.nan)
    assert generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(20)) == expected and recorded.made == 1


def test_a_compiler_that_fails_is_an_error_of_ours(monkeypatch):
    def backend(*_):
        raise RuntimeError("No working C++ compiler found")

    layer = torch.compile(compiled_layers.prompt, backend=backend)
    monkeypatch.setattr(compiled_layers, "compiled", lambda use: layer)
    with pytest.raises(ConfigError, match=r"compiled: .*No working C\+\+ compiler found"):
        generate(language_model(), batch(), LENGTHS, stop=(), compiled=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_steps_give_the_same_answers_on_a_gpu(compiled):
    model, prompts = language_model(), batch()
    expected = generate(model, prompts, LENGTHS, stop=(), sampling=Sampling(40))
    model.cuda()
    for _ in range(2):  # recorded, and replayed from the beginning
        answers = generate(model, prompts.cuda(), LENGTHS.cuda(), (), sampling=Sampling(40), compiled=compiled)
        assert answers == expected


def test_logits_that_are_no_numbers_are_an_error_not_an_empty_answer():
    model = language_model()
    with torch.no_grad():
        model.layers[0].mlp.up.weight.mul_(math.nan)
    with pytest.raises(CheckpointError, match="no numbers: its weights are broken"):
        generate(model, batch(), LENGTHS, stop=())


def test_a_prompt_that_fills_the_context_is_an_error_not_an_empty_answer():
    model = language_model(context=60)
    with pytest.raises(ContextLengthError, match="60 tokens.*60.*fewer"):
        generate(model, batch(), LENGTHS, stop=())
    with pytest.raises(ConfigError, match="max_new_tokens is 0: use a whole number of at least 1"):
        Sampling(max_new_tokens=0)
    for temperature in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"temperature is {temperature}: use a number"):
            Sampling(temperature=temperature)
    for top_p in (0.0, 2.0):
        with pytest.raises(ConfigError, match=f"top_p is {top_p}: use more than 0"):
            Sampling(top_p=top_p)
    rest = LENGTHS.clamp(max=59)
    assert len(generate(model, batch(), rest, stop=())[1]) == 1, "one place left, one token"
    assert generate(model, batch()[:0], LENGTHS[:0], stop=()) == []


# activation checkpointing


@pytest.mark.parametrize("layers", [1, 2, 99])
def test_recomputed_layers_give_the_same_gradients(layers):
    model = language_model().train()
    x = torch.randn(2, 9, 32)
    calls = [0, 0]
    for number, layer in enumerate(model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))

    def gradients():
        model.zero_grad()
        model.logits(model(x)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    usual = gradients()
    assert calls == [1, 1]
    with recomputing(model, training(recomputed_layers=layers)):
        for name, gradient in gradients().items():
            torch.testing.assert_close(gradient, usual[name], rtol=0, atol=0, msg=name)
        assert calls == [3, 3 if layers > 1 else 2], "recomputed layers run once more, in the backward pass"
        with torch.no_grad():
            model(x)
        assert calls == [4, 4 if layers > 1 else 3], "nothing is computed twice where no gradient is wanted"
    calls[:] = 0, 0
    gradients()
    assert calls == [1, 1], "afterwards all is kept again"


def test_recomputing_ends_with_an_error_too():
    model = language_model()
    before = [vars(layer).copy() for layer in model.layers]

    def fails():
        with recomputing(model, training(recomputed_layers=1, recompute_elementwise=True)):
            model.layers = torch.nn.ModuleList(torch.nn.Sequential(layer) for layer in model.layers)  # as wrappers do
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [vars(wrapper[0]) for wrapper in model.layers] == before


def test_recomputing_what_is_elementwise_keeps_products_and_gradients():
    model = language_model().train()
    x = torch.randn(2, 9, 32, requires_grad=True)

    def run(layers: int, elementwise: bool) -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        recipe = training(recomputed_layers=layers, recompute_elementwise=elementwise)
        with FlopCounterMode(display=False) as counter, recomputing(model, recipe):
            model.logits(model(x)).square().sum().backward()
        return counter.get_total_flops(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    (least, usual), (same, selective), (mixed, both), (most, _) = (
        run(0, False), run(0, True), run(1, True), run(2, False),
    )  # fmt: skip
    assert least == same < mixed < most, "only layers that are recomputed as a whole repeat products"
    for gradients in (selective, both):
        torch.testing.assert_close(gradients, usual, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_layers_give_the_same_gradients(monkeypatch, frozen):
    """Stage 1 leaves them frozen, stage 2 trains them; batches have any length, and any of them may be recomputed."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    use = compiled_layers.frozen if frozen else compiled_layers.learning
    whole = torch.compile(use, backend=counter, dynamic=True)
    monkeypatch.setattr(recompute, "compiled", {use: whole}.get)
    model = language_model(layers=3).train().requires_grad_(not frozen)

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        x = x.clone().requires_grad_()
        model.logits(model(x)).square().sum().backward()
        return [x.grad] + [p.grad.clone() for p in model.parameters() if p.grad is not None]

    compiled = training(compiled=True, recompute_elementwise=True)
    compilations = []
    for length, recipe in ((9, compiled), (14, dataclasses.replace(compiled, recomputed_layers=1)), (23, compiled)):
        x = torch.randn(2, length, 32)
        usual = gradients(x)
        with recomputing(model, recipe):
            torch.testing.assert_close(gradients(x), usual, rtol=1e-5, atol=1e-6)
        compilations.append(counter.frame_count)
    assert compilations[-1] == compilations[-2], "another length needs no more"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_compiled_layers_train_on_a_gpu_first_frozen_then_not():
    """As stage 1 and stage 2 in one process: what was compiled for frozen weights would leave gradients out."""
    model = language_model(layers=3).cuda().train()
    for learns in (False, True):
        model.requires_grad_(learns)
        for length in (9, 14):
            x = torch.randn(2, length, 32, device="cuda", requires_grad=True)
            found = []
            for recipe in (training(), training(compiled=True), training(compiled=True, recomputed_layers=2)):
                model.zero_grad()
                x.grad = None
                with recomputing(model, recipe):
                    model.logits(model(x)).square().sum().backward()
                found.append([x.grad.clone()] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
            assert len(found[0]) == (len(list(model.parameters())) if learns else 1), "all but the token embedding"
            for gradients in found[1:]:
                torch.testing.assert_close(gradients, found[0], rtol=1e-3, atol=1e-3)


# conversations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    write_records(path)
    return path


@pytest.fixture(scope="module")
def model() -> VideoLLaVA:
    model = tiny_vllava()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


SHORT = {"max_new_tokens": 6}


def test_a_conversation_answers_as_chat_does_and_reads_only_what_is_new(model, folder, monkeypatch):
    lengths = []
    forward = LanguageModel.forward

    def spy(self, embeddings, *args, **options):
        lengths.append(embeddings.shape[1])
        return forward(self, embeddings, *args, **options)

    monkeypatch.setattr(LanguageModel, "forward", spy)
    conversation = Conversation(model, sampling=Sampling(**SHORT))
    clip, image = folder / "red.mp4", folder / "blue.png"
    shown: list[str] = []
    first = conversation.ask("What?", videos=[clip], on_text=shown.append)
    assert first == model.chat("What?", videos=[clip], **SHORT)
    assert "".join(shown).strip() == first
    lengths.clear()
    second = conversation.ask("Why?")
    read = max(lengths)
    third = conversation.ask("Left <image> of what?", images=[image])
    history = [("<video>\nWhat?", first), ("Why?", second)]
    lengths.clear()
    assert second == model.chat("Why?", videos=[clip], history=history[:1], **SHORT)
    assert read < max(lengths) - 16, "the clip's 16 tokens and the words around them are not read again"
    asked = "Left <image> of what?"
    assert third == model.chat(asked, videos=[clip], images=[image], history=history, **SHORT)
    assert conversation.history == [*history, (asked, third)]
    conversation.reset()
    assert conversation.history == [] and conversation.ask("Why?") == model.chat("Why?", **SHORT)


def test_what_fails_leaves_a_conversation_as_it_was(model, folder):
    conversation, whole = (
        Conversation(model, sampling=Sampling(**SHORT)),
        Conversation(model, sampling=Sampling(**SHORT)),
    )
    clips = [folder / "red.mp4", folder / "blue.mp4"]
    for each in (conversation, whole):
        each.ask("What?", images=[folder / "red.png"])
    before = list(conversation.history)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("And here?", videos=clips[:1], on_text=interrupt)
    with pytest.raises(MediaError, match="none.mp4"):
        conversation.ask("And here?", videos=[folder / "none.mp4"])
    with pytest.raises(DataError, match="<video>"):
        conversation.ask("And <video> here?")
    with pytest.raises(ContextLengthError):
        conversation.ask("And here?", videos=clips * 4)
    assert conversation.history == before
    # the interrupted turn's clip stands where this one does now, and must not be taken for it
    assert conversation.ask("And here?", videos=clips[1:]) == whole.ask("And here?", videos=clips[1:])


def test_a_placeholder_in_an_answer_goes_on_as_a_word(model, folder):
    conversation = Conversation(model, sampling=Sampling(**SHORT))
    conversation.history = [("What?", "an <image> of a <video>")]
    assert conversation.ask("Why?") == model.chat("Why?", history=[("What?", "an image of a video")], **SHORT)


def test_a_cache_that_is_too_small_is_replaced(model, folder):
    conversation = Conversation(model, sampling=Sampling(2))
    answers = [conversation.ask("Why?"), conversation.ask("What?", videos=[folder / "red.mp4"], sampling=Sampling(20))]
    history = [("Why?", answers[0])]
    asked = "<video>\nWhat?"
    assert answers[1] == model.chat(asked, videos=[folder / "red.mp4"], history=history, max_new_tokens=20)


def test_several_conversations_at_once_are_answered_as_each_alone(model, folder):
    questions = ["What?", "Which way does the square move?", "Why?"]
    images, videos = [[folder / "red.png"], [], []], [[], [folder / "red.mp4", folder / "blue.mp4"], []]
    histories = [[], [], [("What?", "red")]]
    together = chat_batch(model, questions, images, videos, histories, sampling=Sampling(**SHORT))
    alone = [
        model.chat(question, images, clips, history=history, **SHORT)
        for question, images, clips, history in zip(questions, images, videos, histories, strict=True)
    ]
    assert together == alone
    assert chat_batch(model, ["Why?"], sampling=Sampling(**SHORT)) == [model.chat("Why?", **SHORT)]
    assert chat_batch(model, []) == []
    with pytest.raises(ConfigError, match="images: 1 for 2"):
        chat_batch(model, ["Why?", "What?"], images=[[]])


# the command line


def chat_command(model, tmp_path, lines: list[str], *files: str):
    from minivllava.cli import app

    model.save_pretrained(tmp_path / "model")
    return CliRunner().invoke(
        app, ["chat", str(tmp_path / "model"), *files, "--max-new-tokens", "6"], input="\n".join(lines)
    )


def test_chat_reads_a_pipe_and_survives_what_is_wrong(model, folder, tmp_path):
    lines = [
        "What?", "/image none.png", f"/video {folder / 'red.png'}", "/nonsense", "/image",
        f'/video "{folder / "red.mp4"}"', "Why?", "", "/reset", "Why?", "/quit", "never asked",
    ]  # fmt: skip
    result = chat_command(model, tmp_path, lines, str(folder / "red.png"))
    assert result.exit_code == 0, result.output
    for message in ("none.png", "is an image", "no command /nonsense", "/image needs"):
        assert message in result.stderr
    conversation = Conversation(model, sampling=Sampling(6))
    first = conversation.ask("What?", images=[folder / "red.png"])
    second = conversation.ask("Why?", videos=[folder / "red.mp4"])
    third = model.chat("Why?", max_new_tokens=6)
    assert [line.strip() for line in result.stdout.splitlines()] == [first, second, third]


def test_chat_shows_a_file_again_after_a_question_that_failed(model, folder, tmp_path):
    lines = [f"/image {folder / 'red.png'}", "What is <video> this?", "What is this?"]
    result = chat_command(model, tmp_path, lines)
    assert "<video>" in result.stderr
    answer = model.chat("What is this?", images=[folder / "red.png"], max_new_tokens=6)
    assert [line.strip() for line in result.stdout.splitlines()] == [answer]


def test_chat_checks_its_first_files(model, folder, tmp_path):
    result = chat_command(model, tmp_path, ["What?"], str(folder / "none.png"))
    assert isinstance(result.exception, MediaError) and "none.png" in str(result.exception)


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_compiled_answers(monkeypatch, command):
    """The shipped model answers the same with --compiled; compiling itself is PyTorch's, and takes half a minute."""
    from minivllava.cli import app

    uses = set()

    def compiled(use):
        uses.add(use)
        return DecoderLayer.__call__

    monkeypatch.setattr(compiled_layers, "compiled", compiled)
    file, question = str(ROOT / "data/sample/videos/test/000000.mp4"), "Describe the clip."
    words = [command, str(TINY), file, *([question] if command == "ask" else []), "--compiled", "--device", "cpu"]
    result = CliRunner().invoke(app, words, input=question)
    answer = VideoLLaVA.from_pretrained(TINY).chat(question, videos=file)
    assert result.stdout.strip() == answer, result.output
    assert uses == {compiled_layers.one_token, compiled_layers.prompt}
