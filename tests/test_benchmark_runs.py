"""Benchmarks with a judge and with a model: resumed, shared, checked, at the command line."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmark_files import FILES, clip, scored, written
from tiny import square, tiny_vllava

from minivllava import cli
from minivllava.config import LanguageConfig
from minivllava.data.conversation import template
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import CheckpointError, ConfigError, ContextLengthError, DataError, JudgeError, MediaError
from minivllava.evaluation import benchmark_run
from minivllava.evaluation.answering import Answerer
from minivllava.evaluation.benchmarks import BENCHMARKS, benchmark, judge, open_ended, video_qa
from minivllava.evaluation.benchmarks.judge import Case, Judge
from minivllava.evaluation.predictions import Problems, open_log, read_log, read_rows

# the judge


CUT = "breaks off before its length"


@pytest.fixture
def endpoint(monkeypatch):
    """An OpenAI-compatible server: `replies`, texts or HTTP codes, are used up in order, and the last one stays."""
    state = SimpleNamespace(replies=["{'pred': 'yes', 'score': 4}"], requests=[], headers=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            state.headers.append(dict(self.headers))
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            reply = reply(body) if callable(reply) else reply
            reply = json.loads(reply[5:]) if str(reply).startswith("json:") else reply  # content that is no string
            answer = json.dumps({"model": "judge-0613", "choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(reply if isinstance(reply, int) else 200)
            if reply == CUT:
                self.send_header("Content-Length", str(len(answer) + 1))
            self.end_headers()
            self.wfile.write(b"no" if isinstance(reply, int) else answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(judge, "PATIENCE", (0.01, 0.01))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    server.shutdown()


def judge_at(endpoint, folder: Path, **options) -> Judge:
    return Judge("gpt-test", folder / "verdicts.jsonl", endpoint.url, progress=False, **options)


def test_video_chatgpts_judge(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    verdicts = {"Sleeping.": "{'pred': 'yes', 'score': 4.8}", "two": '```python\n{"pred": "Yes", "score": 5}\n```',
                "yes": "{'pred': 'yes', 'score': '3'}", "the blue": "{'pred': 'no', 'score': 0}"}  # fmt: skip

    def reply(body):
        said = body["messages"][1]["content"].partition("Predicted Answer: ")[2].partition("\n")[0]
        return verdicts[said]

    endpoint.replies = [reply]
    result = scored("msvd-qa", "video_qa/test_q.json", "video_qa/predictions.jsonl", judge=judge_at(endpoint, tmp_path))
    assert result["metrics"]["judged"] == 75
    assert result["metrics"]["score (0-5)"] == 3  # of 4 (4.8 cut to a whole number), 5, 3, 0
    assert result["judge"]["model"] == "gpt-test"
    body = next(b for b in endpoint.requests if "the ball" in b["messages"][1]["content"])
    assert body["messages"][0]["content"].startswith("You are an intelligent chatbot designed for evaluating")
    assert (
        "Question: what colour is the ball?\nCorrect Answer: red\nPredicted Answer: the blue\n\n"
        in (body["messages"][1]["content"])
    )
    assert body["model"] == "gpt-test" and "temperature" not in body
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-test"
    header, *rows = read_log(tmp_path / "verdicts.jsonl")
    assert (header["judge"], header["protocol"]) == ("gpt-test", "Video-ChatGPT zero-shot QA")
    assert "{question}" in header["user"]
    assert rows[0]["model"] == "judge-0613" and rows[0]["reply"]
    assert "sk-test" not in (tmp_path / "verdicts.jsonl").read_text()


def judged(cases, protocol, model) -> tuple[dict, list[str]]:
    """Verdicts, and what was wrong with the replies."""
    problems = Problems(keep_going=True)
    return judge.judged(cases, protocol, model, problems), problems.found


def test_a_judge_that_a_benchmark_has_no_use_for_is_refused_before_anything_is_answered(endpoint, tmp_path):
    with pytest.raises(ConfigError, match="POPE is scored without a judge"):
        benchmark_run.run_benchmark("nowhere", BENCHMARKS["pope"], tmp_path, tmp_path / "out",
                                    judge=judge_at(endpoint, tmp_path))  # fmt: skip


def test_a_missing_prediction_is_wrong_without_asking_the_judge(endpoint, tmp_path):
    endpoint.replies = ["{'pred': 'yes', 'score': 4}"]
    whole = (FILES / "video_qa/predictions.jsonl").read_text().splitlines()
    fewer = tmp_path / "predictions.jsonl"
    fewer.write_text("\n".join(whole[:1]))
    model = judge_at(endpoint, tmp_path)
    result = scored("msvd-qa", "video_qa/test_q.json", fewer, judge=model, keep_going=True)
    assert (result["n"], result["judge"]["n"], len(endpoint.requests)) == (4, 4, 1)
    assert (result["metrics"]["judged"], result["metrics"]["score (0-5)"]) == (25, 1)


@pytest.mark.parametrize("key", ["sk-SECRET\u2019", "sk-SECRET\rX", "sk-SECRET\x07", "sk-SEC RET\u00e9"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(endpoint, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds") as error:
        judged([Case("x", {"question": "q", "answer": "a", "pred": "p"})], video_qa.VIDEO_CHATGPT,
               judge_at(endpoint, tmp_path))  # fmt: skip
    assert "SEC" not in str(error.value) and not endpoint.requests


def test_spaces_around_a_key_are_no_part_of_it(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-test\r\n")
    judged([Case("x", {"question": "q", "answer": "a", "pred": "p"})], video_qa.VIDEO_CHATGPT,
           judge_at(endpoint, tmp_path))  # fmt: skip
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-test"


def test_judging_goes_on_where_it_stopped_and_asks_again_what_changed(endpoint, tmp_path):
    cases = [Case(name, {"question": "q", "answer": "a", "pred": name}) for name in "abcd"]
    config = judge_at(endpoint, tmp_path)
    judged(cases[:2], video_qa.VIDEO_CHATGPT, config)
    with open(config.file, "a") as file:
        file.write('{"id": "c", "verd')  # stopped in the middle of a line
    verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, config)
    assert (len(endpoint.requests), sorted(verdicts), problems) == (4, ["a", "b", "c", "d"], [])
    changed = [*cases[:3], Case("d", {"question": "q", "answer": "a", "pred": "another"})]
    judged(changed, video_qa.VIDEO_CHATGPT, config)
    assert len(endpoint.requests) == 5
    with pytest.raises(JudgeError, match="verdicts by another judge"):
        judged(cases, video_qa.VIDEO_CHATGPT, replace(config, model="another"))
    with pytest.raises(JudgeError, match="verdicts by another protocol"):
        judged(cases, replace(video_qa.VIDEO_CHATGPT, name="another"), config)


@pytest.mark.parametrize(
    "reply", ["I think it is right.", "{'pred': 'maybe', 'score': 3}", "{'pred': 'yes'}", "{'pred': 'yes', 'score': 9}",
              "", "{'pred': 'yes', 'score': 'high'}", "{[}]", "{'pred': 'yes', 'score': 1e999}", 'json:{"a": 5}'],
)  # fmt: skip
def test_malformed_replies_are_asked_again_then_reported_and_never_a_zero(endpoint, tmp_path, reply):
    endpoint.replies = [reply]
    cases = [Case("x", {"question": "q", "answer": "a", "pred": "p"})]
    verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))
    assert (verdicts, len(problems), len(endpoint.requests)) == ({}, 1, 3)
    assert "x: gpt-test replied" in problems[0]
    endpoint.replies = [reply, "{'pred': 'no', 'score': 1}"]
    verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))
    assert (verdicts, problems) == ({"x": {"pred": False, "score": 1}}, [])


def test_a_malformed_reply_stops_the_score_unless_told_otherwise(endpoint, tmp_path):
    endpoint.replies = ["?"] * 3 + ["{'pred': 'yes', 'score': 4}"]
    options = {"judge": judge_at(endpoint, tmp_path, workers=1)}
    with pytest.raises(DataError, match=r"replied '\?'"):
        scored("msvd-qa", "video_qa/test_q.json", "video_qa/predictions.jsonl", **options)
    endpoint.replies = ["?"]
    result = scored("msvd-qa", "video_qa/test_q.json", "video_qa/predictions.jsonl", keep_going=True, **options)
    assert (result["metrics"]["judged"], result["metrics"]["score (0-5)"], result["judge"]["n"]) == (100, 4, 3)
    assert len(result["problems"]) == 1


def test_a_reply_in_parts_and_in_json(endpoint, tmp_path):
    endpoint.replies = ['json:[{"type": "text", "text": "{\\"pred\\": true, "}, {"text": "\\"score\\": 4}"}]',
                        '{"pred": "no", "score": 0, "why": null}']  # fmt: skip
    cases = [Case("x", {"question": "q", "answer": "a", "pred": "p"})]
    verdicts, _ = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))
    assert verdicts == {"x": {"pred": False, "score": 0}}, "true is neither yes nor no: asked again"
    assert '{"pred": true, "score": 4}' not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_reply_with_half_a_surrogate_pair_is_kept(endpoint, tmp_path):
    endpoint.replies = ["{'pred': 'yes', 'score': 4} \ud83d"]
    cases = [Case("x", {"question": "q", "answer": "a", "pred": "p"})]
    for _ in range(2):
        verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))
        assert (verdicts, problems) == ({"x": {"pred": True, "score": 4}}, [])
    assert len(endpoint.requests) == 1
    assert read_log(tmp_path / "verdicts.jsonl")[1]["reply"] == endpoint.replies[0]


def test_a_question_that_the_endpoint_refuses_is_a_problem_of_that_question(endpoint, tmp_path):
    cases = [Case(name, {"question": "q", "answer": "a", "pred": name}) for name in "abcd"]
    endpoint.replies = [
        lambda body: 400 if "Answer: b\n" in body["messages"][1]["content"] else "{'pred':'yes','score':1}"
    ]
    verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))
    assert sorted(verdicts) == ["a", "c", "d"] and len(problems) == 1 and problems[0].startswith("b: ")
    cases = [case._replace(id=f"first {case.id}") for case in (cases[1], cases[0], cases[2])]
    verdicts, problems = judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path, workers=1))
    assert sorted(verdicts) == ["first a", "first c"] and problems[0].startswith("first b: "), "though it came first"
    endpoint.replies, cases = [400], [case._replace(id=f"{case.id}{i}") for case in cases for i in range(20)]
    with pytest.raises(JudgeError, match="refuses .HTTP 400"):
        judged(cases, video_qa.VIDEO_CHATGPT, Judge("m", tmp_path / "other", endpoint.url, workers=2, progress=False))
    assert len(endpoint.requests) < 4 + len(cases), "the rest is not asked"


def test_verdicts_that_came_before_a_failure_are_kept(endpoint, tmp_path):
    cases = [Case(str(i), {"question": "q", "answer": "a", "pred": str(i)}) for i in range(12)]
    endpoint.replies = ["{'pred': 'yes', 'score': 4}"] * 5 + [401]
    with pytest.raises(JudgeError, match="HTTP 401"):
        judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path, workers=4))
    assert sum("verdict" in row for row in read_log(tmp_path / "verdicts.jsonl")) == 5


@pytest.mark.parametrize("line", ["[1]", '{"id": "x"}'])
def test_a_damaged_file_of_verdicts_is_named(endpoint, tmp_path, line):
    cases = [Case("x", {"question": "q", "answer": "a", "pred": "p"})]
    config = judge_at(endpoint, tmp_path)
    judged(cases, video_qa.VIDEO_CHATGPT, config)
    with open(config.file, "a") as file:
        file.write(line + "\n")
    with pytest.raises(JudgeError, match="holds a line that is no verdict"):
        judged(cases, video_qa.VIDEO_CHATGPT, config)


def test_endpoints_that_are_busy_refuse_or_are_not_there(endpoint, tmp_path):
    cases = [Case("x", {"question": "q", "answer": "a", "pred": "p"})]
    endpoint.replies = [429, 503, "{'pred': 'yes', 'score': 4}"]
    assert judged(cases, video_qa.VIDEO_CHATGPT, judge_at(endpoint, tmp_path))[0]["x"]["score"] == 4
    endpoint.replies = [CUT, "{'pred': 'yes', 'score': 3}"]
    other = Judge("m", tmp_path / "cut", endpoint.url, progress=False)
    assert judged(cases, video_qa.VIDEO_CHATGPT, other)[0]["x"]["score"] == 3, "asked again, as where it is busy"
    for replies, words in (([401], "refuses .HTTP 401"), ([500], "does not answer .HTTP 500")):
        endpoint.replies = replies
        with pytest.raises(JudgeError, match=words):
            judged(cases, video_qa.VIDEO_CHATGPT, Judge("m", tmp_path / "other", endpoint.url, progress=False))
    for url, words in (("http://127.0.0.1:9/v1", "cannot be reached"), ("localhost:1/v1", "is no address")):
        with pytest.raises(JudgeError, match=words):
            judged(cases, video_qa.VIDEO_CHATGPT, Judge("m", tmp_path / "other", url, progress=False))


def test_llava_benchs_judge_sees_context_reference_and_answer(endpoint, tmp_path):
    endpoint.replies = ["8, 6\nGood."]
    result = scored("llava-bench", "llava_bench/questions.jsonl", "llava_bench/answers.jsonl",
                    judge=judge_at(endpoint, tmp_path))  # fmt: skip
    assert result["metrics"]["relative score"] == 75
    texts = [body["messages"][1]["content"] for body in endpoint.requests]
    assert any(
        text.startswith(
            "[Context]\nA beach.\nTwo people walk.\n\n[Question]\nWhat is this place?\n\n[Assistant 1]\nreference 0\n\n"
            "[End of Assistant 1]\n\n[Assistant 2]\nanswer 0\n\n[End of Assistant 2]\n\n[System]\nWe would like"
        )
        for text in texts
    )
    assert endpoint.requests[0]["temperature"] == 0.2
    for reply in ("8\n6", "8 6 7", "good", "0 5", "-1 -1"):
        with pytest.raises(ValueError):
            open_ended.LLAVA_BENCH.parse(reply)


def test_mm_vets_judge_grades_from_0_to_1(endpoint, tmp_path):
    endpoint.replies = [lambda body: "1.0" if "a kitten" in body["messages"][0]["content"] else "0.5 |"]
    result = scored("mm-vet", "mm_vet/mm-vet.json", "mm_vet/answers.json", judge=judge_at(endpoint, tmp_path))
    assert result["metrics"] == {"total": pytest.approx(200 / 3)}
    prompts = [body["messages"][0]["content"] for body in endpoint.requests]
    assert any(prompt.endswith(" | 1.0\n\nWhat is x? | -1 <AND> -5 | x is -1 | ") for prompt in prompts)
    assert endpoint.requests[0]["max_tokens"] == 3
    endpoint.requests.clear()
    endpoint.replies = ["about 0.5"] * 2 + ["0.5"]
    case = [Case("x", {"question": "q", "truth": "t", "answer": "a {truth}"})]
    verdicts, _ = judged(case, open_ended.MM_VET, Judge("m", tmp_path / "v", endpoint.url, progress=False))
    assert verdicts == {"x": 0.5}
    assert [body["temperature"] for body in endpoint.requests] == [0, 0.5, 1.0]
    assert endpoint.requests[0]["messages"][0]["content"].endswith("q | t | a {truth} | ")


# runs of a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny checkpoint with room for the long prompts of benchmarks."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    language = LanguageConfig(vocab_size=300, context=512, width=16, layers=1, heads=2, kv_heads=2, mlp_width=16)
    model = tiny_vllava(language=language)
    model.save_pretrained(path)
    return path


LAYOUTS = {  # benchmark: (folder of fixtures, images and clips that its questions name)
    "activitynet-qa": ("video_qa", ["videos/v_cat.mp4", "videos/v_dog.mp4"]),
    "msvd-qa": ("video_qa", ["videos/cat.mp4", "videos/dog.avi"]),
    "pope": ("pope", ["val2014/a.png", "val2014/b.png"]),
    "vqav2": ("vqav2", ["val2014/COCO_val2014_000000000009.jpg"]),
    "gqa": ("gqa", ["data/images/n1.jpg"]),
    "vizwiz": ("vizwiz", ["val/VizWiz_val_00000000.png", "val/VizWiz_val_00000001.png"]),
    "scienceqa": ("scienceqa", ["images/test/7/image.png", "images/test/9/image.png"]),
    "scienceqa-img": ("scienceqa", ["images/test/7/image.png", "images/test/9/image.png"]),
    "textvqa": ("textvqa", ["train_images/003a.png"]),
    "mmbench": ("mmbench", []),
    "llava-bench": ("llava_bench", ["images/001.png", "images/002.png"]),
    "mm-vet": ("mm_vet", ["images/v1_0.png", "images/v1_1.png", "images/v1_2.png"]),
}  # fmt: skip


def root_of(name: str, folder: Path) -> Path:
    """A copy of a benchmark's fixtures with small images and clips beside them."""
    fixtures, media = LAYOUTS[name]
    root = folder / "root"
    shutil.copytree(FILES / fixtures, root)
    for number, file in enumerate(media):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        colour = ("red", "blue", "green")[number % 3]
        if file.startswith("videos"):
            write_video(root / "clip.mp4", clip(colour))
            (root / "clip.mp4").rename(root / file)
        else:
            write_image(root / file, square(colour, 4))
    return root


def run(model: Path, name: str, root: Path, out: Path, **options) -> dict:
    usual = {"max_new_tokens": 4, "device": "cpu", "progress": False}
    return benchmark_run.run_benchmark(model, benchmark(name), root, out, **(usual | options))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_answers_every_question_and_scores_what_it_can(model, tmp_path, name):
    results = run(model, name, root_of(name, tmp_path), tmp_path / "out")
    asked = benchmark(name).questions(tmp_path / "root")
    predictions = [row.values for row in read_rows(tmp_path / "out/predictions.jsonl", Problems())]
    assert len(predictions) == len(asked) == results["answered"]
    assert all(isinstance(row[BENCHMARKS[name].answer_field], str) for row in predictions)
    if name in ("llava-bench", "mm-vet"):
        assert "run again with --judge" in results["unscored"]
    else:
        assert all(value is None or value >= 0 for value in results["metrics"].values())
    assert json.loads((tmp_path / "out/results.json").read_text())["benchmark"] == name


@pytest.mark.parametrize("name", ["vqav2", "llava-bench"])
def test_an_id_may_have_another_name(tmp_path, name):
    file = next(file for file in root_of(name, tmp_path).rglob("*uestions.json*"))
    file.write_text(file.read_text().replace('"question_id"', '"id"'))
    assert all(question.row["question_id"] == question.key for question in benchmark(name).questions(tmp_path / "root"))


def test_llavas_questions_need_no_id_of_that_name(tmp_path):
    file = root_of("textvqa", tmp_path) / "llava_textvqa_val_v051_ocr.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    written(file, [{"id" if k == "question_id" else k: v for k, v in row.items()} for row in rows])
    found = benchmark("textvqa").questions(tmp_path / "root")
    assert [question.row["question_id"] for question in found] == [str(row["question_id"]) for row in rows]
    written(file, [{k: v for k, v in row.items() if k != "question_id"} for row in rows])
    with pytest.raises(DataError, match="ocr.jsonl:1: no id"):
        benchmark("textvqa").questions(tmp_path / "root")


def test_a_model_that_cannot_answer_says_so(model, tmp_path):
    root = root_of("pope", tmp_path)
    with pytest.raises(ConfigError, match="The device meta"):
        run(model, "pope", root, tmp_path / "out", device="meta")
    mute = shutil.copytree(model, tmp_path / "mute")
    card = json.loads((mute / "config.json").read_text())
    (mute / "config.json").write_text(json.dumps(card | {"tokenizer": False}))
    with pytest.raises(CheckpointError, match="mute holds no tokenizer"):
        run(mute, "pope", root, tmp_path / "mutes")


def test_a_trained_model_goes_by_its_runs_name(model, tmp_path, monkeypatch, command):
    trained = shutil.copytree(model, tmp_path / "runs/first/model")
    root = root_of("pope", tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = command("evaluate", trained, "--benchmark", "pope", "--root", root, "--device", "cpu",
                           "--max-new-tokens", 3)  # fmt: skip
    assert code == 0, err
    rows = read_log(tmp_path / "runs/benchmarks/first/pope/predictions.jsonl")
    assert {row["model_id"] for row in rows} == {"first"}
    assert benchmark_run.model_name(model) == "tiny"
    assert benchmark_run.model_name("LanguageBind/Video-LLaVA-7B") == "Video-LLaVA-7B"


def test_submissions_are_what_the_servers_read(model, tmp_path, monkeypatch):
    said = iter(["A dog's, two.", "Yes", "no", "a cat"] * 9)
    monkeypatch.setattr(Answerer, "__call__", lambda self, asked, **_: [next(said) for _ in asked])
    files = {}
    for name in ("vqav2", "vizwiz", "gqa", "mm-vet"):
        (tmp_path / name).mkdir()
        run(model, name, root_of(name, tmp_path / name), tmp_path / name / "out")
        files[name] = json.loads((tmp_path / name / "out/submission.json").read_text())
    assert files["vqav2"][:2] == [{"question_id": 1, "answer": "dog 's 2"}, {"question_id": 2, "answer": "yes"}]
    assert files["vizwiz"][1] == {"image": "VizWiz_val_00000001.png", "answer": "yes"}
    assert files["gqa"][1]["questionId"] == "202"
    assert set(files["mm-vet"]) == {"v1_0", "v1_1", "v1_2"}


@pytest.mark.parametrize("name, key", [("vizwiz", "image"), ("gqa", "questionId"), ("mm-vet", None)])
def test_a_submission_holds_what_was_left_out_as_an_empty_answer(model, tmp_path, monkeypatch, name, key):
    root = root_of(name, tmp_path)
    first = benchmark(name).questions(root)[0]

    def answers(self, asked, **_):
        if any(question.text == first.prompt for question in asked):
            raise MediaError("broken")
        return ["yes"] * len(asked)

    monkeypatch.setattr(Answerer, "__call__", answers)
    results = run(model, name, root, tmp_path / "out", skip_broken=True)
    assert results["left_out"] == [f"{first.key}: broken"]
    submission = json.loads((tmp_path / "out/submission.json").read_text())
    found = submission if key is None else {row.pop(key): next(iter(row.values())) for row in submission}
    assert list(found) == [question.key for question in benchmark(name).questions(root)] and found[first.key] == ""


def test_vqav2s_submission_holds_all_of_the_test_set(tmp_path):
    from minivllava.evaluation.benchmarks.vqa import vqav2_submission

    written(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": i} for i in (7, 8)])
    assert vqav2_submission(tmp_path, {"8": "Two"}) == [
        {"question_id": 7, "answer": ""}, {"question_id": 8, "answer": "2"},
    ]  # fmt: skip


def test_mmbenchs_submission_is_a_spreadsheet(model, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    run(model, "mmbench", root_of("mmbench", tmp_path), tmp_path / "out")
    rows = list(openpyxl.load_workbook(tmp_path / "out/submission.xlsx").active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "answer", "split", "prediction")
    assert [row[0] for row in rows[1:]] == [5, 6, 1000005]


def test_a_spreadsheet_holds_no_control_characters(model, tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    monkeypatch.setattr(Answerer, "__call__", lambda self, asked, **_: ["B\x00\x0b."] * len(asked))
    run(model, "mmbench", root_of("mmbench", tmp_path), tmp_path / "out")
    rows = list(openpyxl.load_workbook(tmp_path / "out/submission.xlsx").active.values)
    assert [row[-1] for row in rows[1:]] == ["B."] * 3


def test_a_stopped_run_goes_on(model, tmp_path, monkeypatch):
    root, out = root_of("pope", tmp_path), tmp_path / "out"
    answer, asked = Answerer.__call__, []

    def failing(self, questions, **sampling):
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(questions)
        return answer(self, questions, **sampling)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Answerer, "__call__", failing)
        run(model, "pope", root, out, batch_size=2)
    part = out / "parts/0.jsonl"
    with open(part, "a") as file:
        file.write('{"key": "random/1", "ans')  # it was stopped while it wrote
    assert len(read_log(part)) == 4 and not (out / "predictions.jsonl").exists()
    count = []
    monkeypatch.setattr(Answerer, "__call__", lambda self, qs, **k: count.extend(qs) or answer(self, qs, **k))
    results = run(model, "pope", root, out, batch_size=2)
    assert (len(count), results["answered"]) == (8, 12)
    whole = (out / "predictions.jsonl").read_bytes()
    run(model, "pope", root, out, batch_size=2)
    assert len(count) == 8, "a finished run asks nothing"
    assert run(model, "pope", root, tmp_path / "fresh")["metrics"] == results["metrics"]
    assert (tmp_path / "fresh/predictions.jsonl").read_bytes() == whole, "as if it had never been stopped"
    with pytest.raises(DataError, match="answers of another run .max_new_tokens 4, not 5"):
        run(model, "pope", root, out, max_new_tokens=5)
    shutil.copytree(model, tmp_path / "model")
    run(tmp_path / "model", "pope", root, tmp_path / "again")
    tiny_vllava(1).save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="answers of another run .weights"):
        run(tmp_path / "model", "pope", root, tmp_path / "again")
    file = root / "coco/coco_pope_random.json"
    file.write_text(file.read_text().replace("dog", "fox"))
    with pytest.raises(DataError, match="answers of another run .prompts"):
        run(model, "pope", root, out)


def test_processes_share_the_questions(model, tmp_path, monkeypatch):
    root, out = root_of("pope", tmp_path), tmp_path / "out"
    for rank in (1, 2, 0):
        monkeypatch.setattr(benchmark_run, "_processes", lambda device, rank=rank: (rank, 3, "cpu", lambda: None))
        results = run(model, "pope", root, out)
        assert len(read_log(out / f"parts/{rank}.jsonl")) == 4
    assert results["answered"] == 12
    monkeypatch.undo()
    alone = run(model, "pope", root, tmp_path / "alone")
    assert results["metrics"] == alone["metrics"]
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "alone/predictions.jsonl").read_bytes()


def test_the_merged_file_is_checked_for_missing_and_doubled_answers(model, tmp_path, monkeypatch):
    root, out = root_of("pope", tmp_path), tmp_path / "out"
    monkeypatch.setattr(benchmark_run, "_processes", lambda device: (0, 2, "cpu", lambda: None))
    with pytest.raises(DataError, match="adversarial/2 has no answer"):
        run(model, "pope", root, out)
    monkeypatch.undo()
    run(model, "pope", root, out)
    with open_log(out / "parts/7.jsonl") as file:
        file.write(json.dumps({"key": "random/3", "answer": "yes"}) + "\n")
    with pytest.raises(DataError, match="random/3 was answered twice"):
        run(model, "pope", root, out)


def test_missing_media_are_listed_before_the_model_is_loaded(tmp_path):
    root = root_of("msvd-qa", tmp_path)
    (root / "videos/cat.mp4").unlink()
    with pytest.raises(MediaError, match="1 file.s. of MSVD-QA are missing") as error:
        run(tmp_path / "no-model", "msvd-qa", root, tmp_path / "out")
    assert str(root / "videos/cat.mp4") in str(error.value)


def test_broken_media_are_left_out_by_wish_and_counted(model, tmp_path):
    root, out = root_of("msvd-qa", tmp_path), tmp_path / "out"
    (root / "videos/cat.mp4").write_bytes(b"no clip at all, but a file")
    with pytest.raises(MediaError, match="cat.mp4"):
        run(model, "msvd-qa", root, out)
    results = run(model, "msvd-qa", root, out, skip_broken=True)
    assert (results["answered"], results["n"], len(results["left_out"])) == (2, 2, 2)
    write_video(root / "videos/cat.mp4", clip("red"))
    assert run(model, "msvd-qa", root, out, skip_broken=True)["answered"] == 4, "mended files are asked about"


def test_a_question_too_long_for_the_model_is_left_out_by_wish_and_listed(model, tmp_path):
    root, out = root_of("gqa", tmp_path), tmp_path / "out"
    file = root / "data/testdev_balanced_questions.json"
    rows = json.loads(file.read_text())
    first = next(iter(rows))
    rows[first]["question"] = "is it red " * 200
    file.write_text(json.dumps(rows))
    with pytest.raises(ContextLengthError):
        run(model, "gqa", root, out)
    results = run(model, "gqa", root, out, skip_broken=True)
    assert results["answered"] == len(rows) - 1
    assert ["is it red" in reason and "512" in reason for reason in results["left_out"]] == [True]


def test_a_limited_run_is_scored_on_what_it_asked(model, tmp_path):
    results = run(model, "vqav2", root_of("vqav2", tmp_path), tmp_path / "out", limit=3)
    assert (results["answered"], results["n"]) == (3, 3)


def test_a_run_asks_as_the_original_does(model, tmp_path):
    """Clips with "human" in the system sentence, images of some benchmarks without padding."""
    loaded = tiny_vllava(template="v1", aspect="pad")
    videos = benchmark_run._answerer(loaded, BENCHMARKS["tgif-qa"], 0, {})
    images = benchmark_run._answerer(loaded, BENCHMARKS["mm-vet"], 0, {})
    systems = [template(answerer.template_name or "v1").system for answerer in (videos, images)]
    assert "curious human" in systems[0] and "curious user" in systems[1]
    assert (videos.config.aspect, images.config.aspect) == ("pad", "square")


# the command line


@pytest.fixture
def command(monkeypatch, capfd):
    """command(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivllava", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


def test_score_at_the_command_line(command, tmp_path):
    files = ("--questions", FILES / "pope/coco/coco_pope_random.json", "--answers", FILES / "pope/answers_random.jsonl")
    code, out, _ = command("score", "pope", *files, "--out", tmp_path / "r.json")
    assert code == 0
    assert all(word in out for word in ("accuracy", "50.00", "57.14", "95 % interval", "by category"))
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["accuracy"] == 50
    code, out, _ = command("score", "pope", *files, "--json")
    assert json.loads(out)["groups"]["category"]["random"]["tp"] == 2
    answers = written(tmp_path / "a.jsonl", [{"question_id": i, "text": "yes"} for i in range(1, 6)])
    code, _, err = command("score", "pope", *files[:3], answers)
    assert code == 2 and "a.jsonl: no answer to 6" in err and "--keep-going" in err
    code, out, _ = command("score", "pope", *files[:3], answers, "--keep-going")
    assert code == 0 and "problem: " in out


def test_the_help_of_score_lists_benchmarks_and_formats(command):
    code, out, _ = command("score", "--help")
    text = " ".join(out.split())
    assert code == 0
    assert not [name for name in BENCHMARKS if name not in text]
    assert all(
        words in text for words in ("test_q.json", '"question_id"', "coco_pope_*.json", '{"v1_0"', "mm-vet.json")
    )


def test_score_needs_no_torch():
    program = (
        "import sys; sys.argv = ['minivllava', 'score', 'gqa', '--questions', sys.argv[1], '--answers', sys.argv[2]]\n"
        "from minivllava.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'too much was imported'"
    )
    files = (FILES / "gqa/data/testdev_balanced_questions.json", FILES / "gqa/answers.jsonl")
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0 and "75.00" in done.stdout, done.stderr


def test_evaluate_with_a_benchmark_at_the_command_line(command, model, tmp_path):
    root = root_of("pope", tmp_path)
    common = ("evaluate", model, "--benchmark", "POPE", "--root", root, "--device", "cpu", "--out", tmp_path / "out")
    code, out, err = command(*common, "--max-new-tokens", 3)
    assert code == 0, err
    assert "12 answers" in out and "yes_ratio" in out
    (root / "val2014/a.png").unlink()
    code, _, err = command(*common)
    assert code == 2 and "a.png" in err and "--skip-broken" in err
    code, _, err = command("evaluate", model, "--benchmark", "pope")
    assert code == 2 and "--root" in err
    code, _, err = command("evaluate", model, "--benchmark", "pope", "--root", tmp_path / "nowhere")
    assert code == 2 and "nowhere is no folder" in err
