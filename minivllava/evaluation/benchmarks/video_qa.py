"""Zero-shot video QA: MSVD-QA, MSRVTT-QA, TGIF-QA, ActivityNet-QA (the paper's Table 2).

    ROOT/test_q.json    [{"video_name", "question", "question_id"}, ...]
    ROOT/test_a.json    [{"answer", "question_id", (ActivityNet) "type"}, ...]
    ROOT/videos/NAME.mp4 (.avi .mov .mkv .webm); ActivityNet's files are called v_NAME.mp4
    ROOT/{videos/all,mp4,all_test}/    where the original's scripts look for those of MSRVTT, TGIF and ActivityNet

Answers are joined by question id. The original zips both files by index, and with several processes it chunked
the questions but not the answers, so that most were compared with another question's answer.

Predictions: JSON lines {"id", "question", "answer", "pred"} as the original writes; `answer`, the true one, is only
looked at to say where it belongs to another question. Sources: github PKU-YuanGroup/Video-LLaVA,
videollava/eval/video/; the judge's protocol is Video-ChatGPT's (github mbzuai-oryx/Video-ChatGPT,
quantitative_evaluation/).
"""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

from minivllava.errors import DataError
from minivllava.evaluation.benchmarks.judge import Case, Judge, Protocol, judged
from minivllava.evaluation.metrics import mean_interval, percent, vqa_normalised, wilson
from minivllava.evaluation.predictions import Problems, Question, Row, by_id, join, need, read_rows, text_of

FOLDERS = ("videos", "videos/all", "mp4", "all_test")
SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
PREDICTED = ("pred", "prediction", "text")
# ActivityNet-QA's question types (github MILVLG/activitynet-qa)
TYPES = ("motion", "spatial", "temporal", "yes/no", "colour", "object", "location", "number", "other")


def questions(root: Path, prefix: str = "") -> list[Question]:
    """The questions of ROOT/test_q.json, each with its clip; `prefix` is what file names begin with.

    A clip that is not there keeps its likeliest name, so that the run can list it.
    """
    problems = Problems()
    file = need(root, "test_q.json")
    rows = by_id(read_rows(file, problems), problems)
    truths = by_id(read_rows(answer_file(file), Problems(True)), Problems(True))  # `score` says what is wrong with them
    folders = [root / name for name in FOLDERS if (root / name).is_dir()] or [root / FOLDERS[0]]
    found = []
    for name, row in rows.items():
        question = text_of(row, problems, ("question",))
        video = text_of(row, problems, ("video_name", "video"))
        if question is not None and video is not None:
            identity = {"id": row.values.get("question_id", name), "question": question}
            if name in truths and "answer" in truths[name].values:
                identity["answer"] = truths[name].values["answer"]
            found.append(Question(name, question, ("video", _clip(folders, prefix + video)), identity))
    problems.check()
    return found


def _clip(folders: list[Path], name: str) -> Path:
    names = [name] if Path(name).suffix.lower() in SUFFIXES else []
    names += [f"{name}{suffix}" for suffix in SUFFIXES]
    candidates = [folder / name for folder in folders for name in names]
    return next((path for path in candidates if path.is_file()), candidates[0])


def answer_file(questions_file: Path) -> Path:
    """Where the true answers of a question file stand: test_a.json beside test_q.json, or the file itself."""
    beside = questions_file.with_name(re.sub(r"_q(?=[._])", "_a", questions_file.name))
    return beside if beside.is_file() else questions_file


def score(
    questions_file: Path, answers_file: Path, problems: Problems, judge: Judge | None = None, truth: Path | None = None
) -> dict:
    """Accuracy of predictions against test_a.json; with a judge also its accuracy and mean score.

    exact       the prediction is the answer, except for spaces around it
    normalised  the same once both went through VQA's normalisation (case, punctuation, articles, digits, ...)
    judged      the judge said yes; score: the mean of its whole numbers from 0 to 5

    The paper's numbers are the judge's. Raises DataError with all that is wrong with the files.
    """
    asked = by_id(read_rows(questions_file, problems), problems)
    truth = truth or answer_file(questions_file)
    truths = asked if truth == questions_file else by_id(read_rows(truth, problems), problems)
    if not any("answer" in row.values for row in truths.values()):
        raise DataError(f"{truth} holds no true answers: name the file that does, test_a.json, with --truth.")
    texts = {name: text_of(row, problems, ("answer",)) for name, row in truths.items()}
    answers = {name: text for name, text in texts.items() if text is not None}
    for name, row in asked.items():
        if name not in truths:
            problems.add(f"{row.where}: {name} has no answer in {truth}")
        if judge is not None and not isinstance(row.values.get("question"), str):
            problems.add(f"{row.where}: no field question, which the judge must see")
    predictions = by_id(read_rows(answers_file, problems), problems)
    joined = join({name: row for name, row in asked.items() if name in answers}, predictions, problems, answers_file)
    predicted = {name: (text_of(row, problems, PREDICTED) or "") if row else "" for name, row in joined.items()}
    problems.check()

    # a missing prediction is wrong, even where the true answer is an article, which normalises to nothing
    exact = {name: row is not None and predicted[name].strip() == answers[name].strip() for name, row in joined.items()}
    normal = {
        name: row is not None and vqa_normalised(predicted[name]) == vqa_normalised(answers[name])
        for name, row in joined.items()
    }
    n = len(joined)
    result = {
        "n": n,
        "metrics": {"exact": percent(sum(exact.values()), n), "normalised": percent(sum(normal.values()), n)},
        "intervals": {"exact": wilson(sum(exact.values()), n), "normalised": wilson(sum(normal.values()), n)},
        "groups": {"type": _by_type(truths, normal)} if any("type" in row.values for row in truths.values()) else {},
        "notes": _misaligned(joined, answers),
    }
    if judge is not None:
        given = {name: predicted[name] for name, row in joined.items() if row}
        _add_judged(result, asked, answers, given, problems, judge)
    return result


def _by_type(truths: dict[str, Row], correct: dict[str, bool]) -> dict:
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, hit in correct.items():
        kind = truths[name].values.get("type")
        groups[TYPES[int(kind)] if kind in range(len(TYPES)) else str(kind)].append(hit)
    return {kind: {"n": len(hits), "normalised": percent(sum(hits), len(hits))} for kind, hits in groups.items()}


def _misaligned(joined: dict[str, Row | None], answers: dict[str, str]) -> list[str]:
    """Says so when a predictions file carries answers that belong to other questions."""
    carried = {name: row.values["answer"] for name, row in joined.items() if row and "answer" in row.values}
    wrong = [name for name, answer in carried.items() if answer != answers[name]]
    if not wrong:
        return []
    return [
        f"{len(wrong):,} of {len(carried):,} predictions carry an answer that is not their question's "
        f"(the first: {wrong[0]}), as when answers are matched by index; the true ones were used here."
    ]


def _verdict(reply: str) -> dict:
    """{"pred": bool, "score": int} from a reply like {'pred': 'yes', 'score': 4}, in Python's or JSON's spelling.

    As in the original, a score of 4.8 counts as 4 (`int`), and "yes" or "no" may stand inside a longer word of
    `pred`, "yes" first. What is outside the braces (a code fence) is left out.
    """
    text = reply[reply.find("{") : reply.rfind("}") + 1]
    try:
        verdict = json.loads(text)
    except json.JSONDecodeError:
        verdict = ast.literal_eval(text)
    said, grade = str(verdict["pred"]).lower(), int(verdict["score"])
    if not ("yes" in said or "no" in said) or not 0 <= grade <= 5:
        raise ValueError("'pred' is yes or no and 'score' from 0 to 5")
    return {"pred": "yes" in said, "score": grade}


VIDEO_CHATGPT = Protocol(
    name="Video-ChatGPT zero-shot QA",
    system="You are an intelligent chatbot designed for evaluating the correctness of generative outputs for "
    "question-answer pairs. Your task is to compare the predicted answer with the correct answer and determine if "
    "they match meaningfully. Here's how you can accomplish the task:------##INSTRUCTIONS: - Focus on the meaningful "
    "match between the predicted answer and the correct answer.\n- Consider synonyms or paraphrases as valid "
    "matches.\n- Evaluate the correctness of the prediction compared to the answer.",
    user="Please evaluate the following video-based question-answer pair:\n\nQuestion: {question}\nCorrect Answer: "
    "{answer}\nPredicted Answer: {pred}\n\nProvide your evaluation only as a yes/no and score where the score is an "
    "integer value between 0 and 5, with 5 indicating the highest meaningful match. Please generate the response in "
    "the form of a Python dictionary string with keys 'pred' and 'score', where value of 'pred' is  a string of "
    "'yes' or 'no' and value of 'score' is in INTEGER, not STRING.DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR "
    "EXPLANATION. Only provide the Python dictionary string. For example, your response should look like this: "
    "{'pred': 'yes', 'score': 4.8}.",
    parse=_verdict,
)


def _add_judged(result: dict, asked, answers, given: dict[str, str], problems: Problems, judge: Judge):
    """Adds the judge's accuracy, yes / (yes + no), and mean score over all verdicts on the predictions that are given;
    a missing one is wrong without asking."""
    cases = [
        Case(name, {"question": str(asked[name].values.get("question", "")), "answer": answers[name], "pred": pred})
        for name, pred in given.items()
    ]
    verdicts = judged(cases, VIDEO_CHATGPT, judge, problems)
    missing = result["n"] - len(given)
    yes = [verdict["pred"] for verdict in verdicts.values()] + [False] * missing
    grades = [verdict["score"] for verdict in verdicts.values()] + [0] * missing
    result["metrics"] |= {
        "judged": percent(sum(yes), len(yes)),
        "score (0-5)": sum(grades) / len(grades) if grades else None,
    }
    result["intervals"]["judged"] = mean_interval(yes)
    result["judge"] = {"model": judge.model, "endpoint": judge.endpoint, "verdicts": str(judge.file), "n": len(yes)}
