"""The real benchmarks by name: what their files hold, and the functions that ask and score. No torch.

questions   ROOT -> the questions to a model, each with its image or clip
truth       ROOT -> the file with the true answers, or None where only a server has them
score       (questions file, answers file, problems, truth) -> {"n", "metrics", "intervals", "groups", ...}; where a
            judge can score it, also `judge`
submission  (ROOT, {question key: answer}, questions) -> what the benchmark's own server or script reads
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minivllava.errors import ConfigError, check_choice
from minivllava.evaluation.benchmarks import gqa, mmbench, open_ended, pope, science_qa, video_qa, vqa
from minivllava.evaluation.benchmarks.judge import Judge
from minivllava.evaluation.predictions import Problems, Question


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `questions_format` and `answers_format` say what `score` reads, for people."""

    name: str
    title: str
    questions_format: str
    answers_format: str
    questions: Callable[[Path], list[Question]]
    truth: Callable[[Path], Path | None]
    score: Callable[..., dict]
    submission: Callable[[Path, dict[str, str], list[Question]], object] | None = None
    answer_field: str = "text"  # where a run writes the model's answer
    max_new_tokens: int = 128  # as the original's script for it
    llava_v1: bool = False  # the original asks about clips with "human" for "user" in the system sentence
    centre_crop: bool = False  # images are not padded to a square first, as in the original's script for it
    judge: str = ""  # "also": one can score it besides; "only": nothing else can
    spreadsheet: bool = False  # the submission is rows of one; else it is JSON

    def check_judge(self, judge: Judge | None):
        """Raises ConfigError for a judge that the benchmark has no use for."""
        if judge is not None and not self.judge:
            raise ConfigError(f"{self.title} is scored without a judge: leave --judge out.")

    def scores(
        self, questions: Path, answers: Path, problems: Problems, judge: Judge | None = None, truth: Path | None = None
    ) -> dict:
        """`score`, by a judge too if one is given."""
        self.check_judge(judge)
        options = {"judge": judge} if self.judge else {}
        return self.score(questions, answers, problems, truth=truth, **options)


def _video(name: str, title: str, prefix: str = "") -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        questions_format="test_q.json with test_a.json beside it (or in --truth), joined by question_id",
        answers_format='{"id", "pred"} a line; with --judge also the judge\'s accuracy and score',
        questions=partial(video_qa.questions, prefix=prefix),
        truth=lambda root: root / "test_q.json" if (root / "test_a.json").is_file() else None,
        score=video_qa.score,
        answer_field="pred",
        max_new_tokens=1024,
        llava_v1=True,
        judge="also",
    )


_ALL = (
    _video("msvd-qa", "MSVD-QA"),
    _video("msrvtt-qa", "MSRVTT-QA"),
    _video("tgif-qa", "TGIF-QA"),
    _video("activitynet-qa", "ActivityNet-QA", prefix="v_"),
    Benchmark(
        name="pope",
        title="POPE",
        questions_format="coco_pope_*.json, their folder, or llava_pope_test.jsonl with coco/ beside it",
        answers_format='{"question_id", "text" or "answer"} a line, with "category" for a folder',
        questions=pope.questions,
        truth=pope.truth_for_run,
        score=pope.score,
    ),
    Benchmark(
        name="vqav2",
        title="VQAv2",
        questions_format="v2_mscoco_*_annotations.json, or the questions beside it",
        answers_format='[{"question_id", "answer"}], or {"question_id", "text"} a line',
        questions=vqa.vqav2_questions,
        truth=vqa.vqav2_truth,
        score=vqa.vqav2_score,
        submission=lambda root, answers, _: vqa.vqav2_submission(root, answers),
    ),
    Benchmark(
        name="gqa",
        title="GQA",
        questions_format="testdev_balanced_questions.json",
        answers_format='[{"questionId", "prediction"}], or {"question_id", "text"} a line',
        questions=gqa.questions,
        truth=gqa.truth_file,
        score=gqa.score,
        submission=lambda _root, answers, _: gqa.submission(answers),
    ),
    Benchmark(
        name="vizwiz",
        title="VizWiz",
        questions_format='val.json: [{"image", "answers": [{"answer"}, ...]}]',
        answers_format='[{"image", "answer"}], or {"question_id" (the image), "text"} a line',
        questions=vqa.vizwiz_questions,
        truth=vqa.vizwiz_truth,
        score=vqa.vizwiz_score,
        submission=lambda _root, answers, asked: vqa.vizwiz_submission(answers, {q.key: q.row["image"] for q in asked}),
    ),
    Benchmark(
        name="scienceqa",
        title="ScienceQA",
        questions_format="problems.json (with pid_splits.json beside it), or llava_test_CQM-A.json",
        answers_format='{"question_id", "text"} a line',
        questions=science_qa.questions,
        truth=science_qa.truth_file,
        score=science_qa.score,
        max_new_tokens=1024,
        centre_crop=True,
    ),
    Benchmark(
        name="scienceqa-img",
        title="ScienceQA-IMG",
        questions_format="as scienceqa; only questions with an image count",
        answers_format="as scienceqa",
        questions=partial(science_qa.questions, images_only=True),
        truth=science_qa.truth_file,
        score=partial(science_qa.score, images_only=True),
        max_new_tokens=1024,
        centre_crop=True,
    ),
    Benchmark(
        name="textvqa",
        title="TextVQA",
        questions_format="TextVQA_0.5.1_val.json",
        answers_format='{"question_id" (the image), "prompt", "text"} a line, or {"question_id", "text"}',
        questions=vqa.textvqa_questions,
        truth=vqa.textvqa_truth,
        score=vqa.textvqa_score,
    ),
    Benchmark(
        name="mmbench",
        title="MMBench",
        questions_format="mmbench_dev_*.tsv (index, question, A to D, answer, category, ...)",
        answers_format='{"question_id" (the index), "text"} a line; LLaVA\'s rounds too',
        questions=mmbench.questions,
        truth=mmbench.truth_for_run,
        score=mmbench.score,
        submission=lambda root, answers, _: mmbench.submission(root, answers),
        spreadsheet=True,
        max_new_tokens=1024,
    ),
    Benchmark(
        name="llava-bench",
        title="LLaVA-Bench (in the wild)",
        questions_format="questions.jsonl, with context.jsonl and answers_gpt4.jsonl beside it",
        answers_format='{"question_id", "text"} a line and --judge, or reviews {"question_id", "tuple"}',
        questions=open_ended.llava_bench_questions,
        truth=lambda root: root / "questions.jsonl",
        score=open_ended.llava_bench_score,
        judge="only",
        max_new_tokens=1024,
        centre_crop=True,
    ),
    Benchmark(
        name="mm-vet",
        title="MM-Vet",
        questions_format="mm-vet.json",
        answers_format='{"v1_0": text, ...} and --judge, or grades {"v1_0": {"score": [...]}, ...}',
        questions=open_ended.mm_vet_questions,
        truth=open_ended.mm_vet_truth,
        score=open_ended.mm_vet_score,
        judge="only",
        submission=lambda _root, answers, _: answers,
        max_new_tokens=1024,
        centre_crop=True,
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, however it is spelt (MSVD_QA, VQAv2). Raises ConfigError listing the names."""
    plain = {_plain(known): found for known, found in BENCHMARKS.items()}
    if _plain(name) not in plain:
        check_choice("benchmark", name, BENCHMARKS)
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
