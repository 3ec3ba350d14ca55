"""Open questions that only a judge can score: LLaVA-Bench (in the wild) and MM-Vet (the paper's Table 3).

LLaVA-Bench: a judge (gpt-4-0314 in the paper) sees a description of the image, GPT-4's answer and the model's, and
gives each 1 to 10; the result is 100 x the model's mean over GPT-4's.
    ROOT/questions.jsonl {"question_id", "image", "text", "category"}   ROOT/images/
    ROOT/context.jsonl {"image", "caption": [...]}   ROOT/answers_gpt4.jsonl {"question_id", "text"}

MM-Vet: a judge (gpt-4-0613) gives 0.0 to 1.0 after a few examples; the result is 100 x the mean, overall and for
each capability.
    ROOT/mm-vet.json {"v1_0": {"imagename", "question", "answer", "capability"}}   ROOT/images/

Sources: github haotian-liu/LLaVA, llava/eval/{eval_gpt_review_bench,summarize_gpt_review}.py, table/rule.json;
github yuweihao/MM-Vet, mm-vet_evaluator.py.
"""

from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev

from minivllava.errors import DataError
from minivllava.evaluation.benchmarks.judge import Case, Judge, Protocol, judged
from minivllava.evaluation.metrics import mean_interval, percent
from minivllava.evaluation.predictions import (
    Problems,
    Question,
    Row,
    by_id,
    id_of,
    join,
    need,
    read_rows,
    text_of,
)


def _two_scores(reply: str) -> list[float]:
    """[GPT-4's, the model's] from a reply whose first line is two numbers; the rest is the judge's reasons."""
    scores = [float(part) for part in reply.split("\n")[0].replace(",", " ").split()]
    if len(scores) != 2 or not all(1 <= score <= 10 for score in scores):
        raise ValueError("the first line must be two scores from 1 to 10")
    return scores


LLAVA_BENCH = Protocol(
    name="LLaVA-Bench (in the wild)",
    system="You are a helpful and precise assistant for checking the quality of the answer.",
    user="[Context]\n{context}\n\n[Question]\n{question}\n\n[Assistant 1]\n{reference}\n\n[End of Assistant 1]\n\n"
    "[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n[System]\nWe would like to request your feedback on the "
    "performance of two AI assistants in response to the user question displayed above. The user asks the question on "
    "observing an image. For your reference, the visual content in the image is represented with a few sentences "
    "describing the image. \nPlease rate the helpfulness, relevance, accuracy, level of details of their responses. "
    "Each assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\nPlease first output a single line containing only two values indicating the scores for Assistant 1 "
    "and 2, respectively. The two scores are separated by a space.\nIn the subsequent line, please provide a "
    "comprehensive explanation of your evaluation, avoiding any potential bias and ensuring that the order in which "
    "the responses were presented does not affect your judgment.\n\n",
    parse=_two_scores,
    temperature=0.2,
    max_tokens=1024,
)


def llava_bench_questions(root: Path) -> list[Question]:
    """The questions of questions.jsonl, asked as they are."""
    problems = Problems()
    folder = need(root, "images")
    found = []
    for name, row in by_id(read_rows(need(root, "questions.jsonl"), problems), problems).items():
        image, text = (text_of(row, problems, (field,)) for field in ("image", "text"))
        if image is not None and text is not None:
            identity = {"question_id": row.values.get("question_id", name), "prompt": text}
            found.append(Question(name, text, ("image", folder / image), identity))
    problems.check()
    return found


def llava_bench_score(
    questions_file: Path, answers_file: Path, problems: Problems, judge: Judge | None = None, truth: Path | None = None
) -> dict:
    """100 x the model's mean score / GPT-4's, overall and by category.

    answers_file: the model's answers, for a judge; or reviews that one wrote before, with "tuple": [GPT-4's score,
    the model's]. Means are rounded to three digits before they are divided, as in LLaVA's summary. A review whose
    scores could not be read (LLaVA writes -1, -1, and averages it) is a problem here, and what has no review is
    left out, since GPT-4's score is missing too.
    """
    asked = by_id(read_rows(questions_file, problems), problems)
    answers = by_id(read_rows(answers_file, problems), problems)
    joined = join(asked, answers, problems, answers_file)
    rows = [row for row in joined.values() if row]
    reviewed = bool(rows) and all("tuple" in row.values for row in rows)
    scores = {}
    if reviewed:
        for name, row in ((name, row) for name, row in joined.items() if row):
            pair = row.values["tuple"]
            numbers = isinstance(pair, list) and all(isinstance(s, int | float) and s >= 0 for s in pair)
            if numbers and len(pair) == 2:
                scores[name] = pair
            else:
                problems.add(f"{row.where}: the scores of {name} are {pair}, not two numbers: review it again")
        problems.check()
    else:
        _need_judge(judge, "LLaVA-Bench", 'reviews with "tuple"')
        cases = _llava_bench_cases(asked, joined, questions_file.parent, problems)
        problems.check()
        scores = judged(cases, LLAVA_BENCH, judge, problems)
    groups: dict[str, list] = defaultdict(list)
    for name, pair in scores.items():
        groups[str(asked[name].values.get("category", "all"))].append(pair)
    relative = {kind: _relative(pairs) for kind, pairs in sorted(groups.items())}
    every = _relative(list(scores.values()))
    return {
        "n": len(scores),
        "metrics": {name: value for name, value in every.items() if name != "n"},
        "intervals": {},
        "groups": {"category": relative},
        "notes": [],
    } | _judge_card(judge, reviewed)


def _relative(pairs: list) -> dict:
    if not pairs:
        return {"n": 0, "relative score": None}
    reference, model = (round(mean(pair[i] for pair in pairs), 3) for i in (0, 1))
    relative = percent(model, reference)
    return {"n": len(pairs), "relative score": relative, "GPT-4 (1-10)": reference, "model (1-10)": model}


def _llava_bench_cases(asked, joined, folder: Path, problems: Problems) -> list[Case]:
    contexts = by_id(read_rows(need(folder, "context.jsonl"), problems), problems,
                     lambda row: id_of(row, problems, ("image",)))  # fmt: skip
    references = by_id(read_rows(need(folder, "answers_gpt4.jsonl"), problems), problems)
    cases = []
    for name, row in asked.items():
        context = contexts.get(str(row.values.get("image")))
        reference = references.get(name)
        if context is None or reference is None:
            problems.add(f"{row.where}: {name} has no {'reference answer' if context else 'context'} in {folder}")
        elif joined[name]:
            caption = context.values.get("caption")
            fields = {
                "context": "\n".join(caption) if isinstance(caption, list) else str(caption),
                "question": text_of(row, problems, ("text",)) or "",
                "reference": text_of(reference, problems) or "",
                "answer": text_of(joined[name], problems) or "",
            }
            cases.append(Case(name, fields))
    return cases


def _need_judge(judge: Judge | None, title: str, instead: str):
    if judge is None:
        raise DataError(f"{title} is scored by a judge: name one with --judge, or give {instead} as --answers.")


def _judge_card(judge: Judge | None, graded: bool) -> dict:
    if graded or judge is None:
        return {}
    return {"judge": {"model": judge.model, "endpoint": judge.endpoint, "verdicts": str(judge.file)}}


# MM-Vet


def _grade(reply: str) -> float:
    """The first word of a reply as a grade from 0.0 to 1.0."""
    grade = float(reply.split(" ")[0].strip())
    if not 0 <= grade <= 1:
        raise ValueError("the grade must be from 0.0 to 1.0")
    return grade


_EQUATION = "What is x in the equation? | -1 <AND> -5 | "
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and "
    "Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland "
    "is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of these "
    "countries do not accurately represent their landscapes. | "
)
_EXAMPLES = (
    *(_EQUATION + said for said in ("x = 3 | 0.0", "x = -1 | 0.5", "x = -5 | 0.5", "x = -5 or 5 | 0.5")),
    f"{_EQUATION}x = -1 or x = -5 | 1.0",
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not "
    "very icy and Greenland isn't very green. | 0.4",
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, "
    "despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This "
    "is why I have trust issues' is a playful way to suggest that these contradictions can lead to distrust or "
    "confusion. The humor in this meme is derived from the unexpected contrast between the names of the countries "
    "and their actual physical characteristics. | 1.0",
)
MM_VET = Protocol(
    name="MM-Vet",
    system=None,
    user="Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. "
    "<AND> in the ground truth means it is totally right only when all elements in the ground truth are present in "
    "the prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score.\n\nQuestion | Ground truth | Prediction | "
    "Correctness\n--- | --- | --- | ---\n" + "\n".join(_EXAMPLES) + "\n\n{question} | {truth} | {answer} | ",
    parse=_grade,
    temperature=0.0,
    max_tokens=3,
)


def mm_vet_questions(root: Path) -> list[Question]:
    """The questions of mm-vet.json, asked as they are."""
    problems = Problems()
    folder = need(root, "images")
    found = []
    for name, row in by_id(read_rows(mm_vet_truth(root), problems, keyed="question_id"), problems).items():
        image, text = (text_of(row, problems, (field,)) for field in ("imagename", "question"))
        if image is not None and text is not None:
            found.append(Question(name, text, ("image", folder / image), {"question_id": name, "prompt": text}))
    problems.check()
    return found


def mm_vet_truth(root: Path) -> Path:
    """The questions with their answers and capabilities."""
    return need(root, "mm-vet.json")


def mm_vet_score(
    questions_file: Path, answers_file: Path, problems: Problems, judge: Judge | None = None, truth: Path | None = None
) -> dict:
    """100 x the mean grade, overall, by capability, and by combination of capabilities.

    answers_file: {"v1_0": text} or LLaVA's JSON lines (question_id 0 is v1_0), for a judge; or the grades that one
    gave before, {"v1_0": {"score": [one for each run]}}: several runs are averaged, "std" is over their totals.
    """
    asked = by_id(read_rows(truth or questions_file, problems, keyed="question_id"), problems)
    rows = read_rows(answers_file, problems, keyed="question_id")
    needed = {name: _capabilities(row, problems) for name, row in asked.items()}
    problems.check()
    answers = by_id(rows, problems, lambda row: _vet_id(row, problems))
    joined = join(asked, answers, problems, answers_file)
    rows = {name: row for name, row in joined.items() if row}
    graded = bool(rows) and all("score" in row.values for row in rows.values())
    if graded:
        grades = {name: _grades(row, problems) for name, row in rows.items()}
        problems.check()
        grades = {name: values for name, values in grades.items() if values}  # the judge's mistakes are no zeros
        runs = {len(values) for values in grades.values()}
        if len(runs) > 1:
            raise DataError(f"{answers_file}: questions have {min(runs)} to {max(runs)} grades: grade all as often.")
    else:
        cases = []
        for name, row in rows.items():
            # {"v1_0": "text"} is read as {"question_id": "v1_0", "value": "text"}
            answer = text_of(row, problems, ("value", "text", "prediction", "pred", "answer"))
            question, true = (text_of(asked[name], problems, (field,)) for field in ("question", "answer"))
            if answer is not None and question is not None and true is not None:
                true = true.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
                cases.append(Case(name, {"question": question, "truth": true, "answer": answer}))
        problems.check()
        _need_judge(judge, "MM-Vet", 'grades {"v1_0": {"score": [...]}}')
        verdicts = judged(cases, MM_VET, judge, problems)
        grades = {name: [grade] for name, grade in verdicts.items()}
    runs = max((len(values) for values in grades.values()), default=1)
    grades |= {name: [0.0] * runs for name, row in joined.items() if row is None}
    return _vet_result(needed, grades) | _judge_card(judge, graded)


def _vet_id(row: Row, problems: Problems) -> str | None:
    name = id_of(row, problems)
    return f"v1_{name}" if name and name.isdigit() else name


def _capabilities(row: Row, problems: Problems) -> list[str]:
    """The capabilities that a question needs, in order and each once; ["none"] and a problem if they are no names."""
    held = row.values.get("capability") or ["none"]
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        problems.add(f"{row.where}: 'capability' must be a list of names")
        return ["none"]
    return sorted(set(held))


def _grades(row: Row, problems: Problems) -> list[float]:
    scores = row.values["score"]
    scores = scores if isinstance(scores, list) else [scores]
    if scores and all(isinstance(s, int | float) and 0 <= s <= 1 for s in scores):
        return scores
    problems.add(f"{row.where}: the grades {scores} are no numbers from 0 to 1")
    return []


def _vet_result(needed: dict[str, list[str]], grades: dict[str, list[float]]) -> dict:
    """The figures of questions that have `grades`; needed: each question's capabilities."""
    capabilities: dict[str, list[float]] = defaultdict(list)
    combinations: dict[str, list[float]] = defaultdict(list)
    means = {name: mean(values) for name, values in grades.items()}
    for name, grade in means.items():
        combinations["_".join(needed[name])].append(grade)
        for capability in needed[name]:
            capabilities[capability].append(grade)
    runs = list(zip(*grades.values(), strict=True))
    return {
        "n": len(grades),
        "metrics": {
            "total": percent(sum(means.values()), len(means)),
            **({"std over runs": 100 * pstdev(mean(run) for run in runs)} if len(runs) > 1 else {}),
        },
        "intervals": {"total": mean_interval(list(means.values())) if means else None},
        "groups": {
            title: {kind: {"n": len(of), "score": percent(sum(of), len(of))} for kind, of in sorted(kinds.items())}
            for title, kinds in (("capability", capabilities), ("capabilities together", combinations))
        },
        "notes": [],
    }
