"""VQA with ten human answers: VQAv2, VizWiz and TextVQA (the paper's Table 3).

An answer's accuracy is min(1, matches / 3) averaged over leaving each human out (`metrics.leave_one_out`), after
both sides were normalised. VQAv2 and VizWiz score their test sets on a server: a run writes the file to upload,
normalised by the EvalAI processor as LLaVA does. Sources: visualqa.org/evaluation; github GT-Vision-Lab/VQA,
vqaEval.py; vizwiz.org; github haotian-liu/LLaVA, llava/eval/{eval_textvqa,m4c_evaluator}.py, scripts/convert_*.py.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from minivllava.evaluation.metrics import evalai_normalised, leave_one_out, mean_interval, percent, vqa_normalised
from minivllava.evaluation.predictions import (
    Problems,
    Question,
    Row,
    by_id,
    find,
    id_of,
    join,
    need,
    read_rows,
    text_of,
)

SHORT = "\nAnswer the question using a single word or phrase."  # what LLaVA appends to short questions
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def llava_questions(file: Path, folder: Path, key: Callable[[Row], str] | None = None) -> list[Question]:
    """LLaVA's JSON lines {"question_id", "image", "text"}, whose text is the whole prompt; `key` tells them apart."""
    problems = Problems()
    found = []
    for name, row in by_id(read_rows(file, problems), problems, key).items():
        image, text = (text_of(row, problems, (field,)) for field in ("image", "text"))
        number = id_of(row, problems) if key else name
        if image is not None and text is not None and number is not None:
            identity = {"question_id": row.values.get("question_id", number), "image": image, "prompt": text}
            found.append(Question(name, text, ("image", folder / image), identity))
    problems.check()
    return found


def human_answers(row: Row, problems: Problems) -> list[str]:
    """The human answers of an annotation: texts, or objects with "answer"; [] and a problem if there are none."""
    answers = row.values.get("answers")
    answers = answers if isinstance(answers, list) else []
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not texts or not all(isinstance(text, str) for text in texts):
        problems.add(f"{row.where}: 'answers' must be a list of texts, or of objects with 'answer'")
        return []
    return texts


def vqa_scores(
    annotated: dict[str, Row],
    answers: dict[str, Row],
    problems: Problems,
    answers_file: Path,
    normalised: Callable[[str], str] = vqa_normalised,
    groups: tuple[str, ...] = (),
) -> dict:
    """Accuracies of answers to annotated questions, joined by key, overall and by the annotations' fields `groups`."""
    joined = join(annotated, answers, problems, answers_file)
    humans = {name: [normalised(h) for h in human_answers(row, problems)] for name, row in annotated.items()}
    replies = {name: text_of(row, problems) if row else None for name, row in joined.items()}
    problems.check()
    scores = {
        name: leave_one_out(normalised(reply), humans[name]) if reply is not None else 0.0
        for name, reply in replies.items()
        if humans[name]
    }
    grouped: dict[str, dict[str, list[float]]] = {field: defaultdict(list) for field in groups}
    for name, value in scores.items():
        for field in groups:
            if field in annotated[name].values:
                grouped[field][str(annotated[name].values[field])].append(value)
    return {
        "n": len(scores),
        "metrics": {"accuracy": percent(sum(scores.values()), len(scores))},
        "intervals": {"accuracy": mean_interval(list(scores.values()))},
        "groups": {
            field.replace("_", " "): {
                kind: {"n": len(values), "accuracy": percent(sum(values), len(values))}
                for kind, values in sorted(kinds.items())
            }
            for field, kinds in grouped.items()
            if kinds
        },
        "notes": [],
    }


# VQAv2

VQAV2 = ("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_*.jsonl", "v2_OpenEnded_mscoco_*_questions.json")


def vqav2_questions(root: Path) -> list[Question]:
    """LLaVA's llava_vqav2_mscoco_test-dev2015.jsonl, or the official v2_OpenEnded_mscoco_*_questions.json."""
    file = need(root, *VQAV2)
    if file.suffix == ".jsonl":
        return llava_questions(file, need(root, "test2015", "images"))
    problems = Problems()
    split = re.sub(r"test-dev", "test", file.stem.split("_")[-2])  # test-dev2015 asks about test2015's images
    folder = need(root, split, "images")
    found = []
    for name, row in by_id(read_rows(file, problems, field="questions"), problems).items():
        question = text_of(row, problems, ("question",))
        image = id_of(row, problems, ("image_id",))
        if question is not None and image is not None:
            path = folder / f"COCO_{split}_{image:0>12}.jpg"
            identity = {"question_id": row.values.get("question_id", name)}
            found.append(Question(name, question + SHORT, ("image", path), identity))
    problems.check()
    return found


def vqav2_truth(root: Path) -> Path | None:
    """Annotations of the split that is asked: only the training and validation splits have some."""
    split = re.search("mscoco_(.*?)(_questions)?$", need(root, *VQAV2).stem)[1]
    return find(root, f"v2_mscoco_{split}_annotations.json")


def vqav2_score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """VQAv2's accuracy, overall and by answer and question type.

    questions_file: v2_mscoco_*_annotations.json (or the questions, with the annotations beside them or in `truth`).
    Both sides are normalised as visualqa.org/evaluation says. The script's own versions differ over human answers,
    which the released files hold normalised already: an older one takes only their punctuation away, the newest
    leaves both sides as they are where all ten agree.
    """
    truth = truth or _annotations(questions_file)
    annotated = by_id(read_rows(truth, problems, field="annotations"), problems)
    answers = by_id(read_rows(answers_file, problems), problems)
    return vqa_scores(annotated, answers, problems, answers_file, groups=("answer_type", "question_type"))


def _annotations(file: Path) -> Path:
    """The annotations beside an official question file; any other file is taken for annotations itself."""
    match = re.fullmatch(r"v2_OpenEnded_(.*)_questions\.json", file.name)
    return need(file.parent, f"v2_{match[1]}_annotations.json") if match else file


def vqav2_submission(root: Path, answers: dict[str, str]) -> list[dict]:
    """[{"question_id", "answer"}] for the server, which wants all of test2015: what was not asked is ""."""
    everything = find(root, "llava_vqav2_mscoco_test2015.jsonl")
    problems = Problems()
    names = list(by_id(read_rows(everything, problems), problems)) if everything else list(answers)
    problems.check()
    return [
        {"question_id": int(name) if name.isdigit() else name, "answer": evalai_normalised(answers.get(name, ""))}
        for name in names
    ]


# VizWiz


def vizwiz_questions(root: Path) -> list[Question]:
    """LLaVA's llava_test.jsonl, or the official test.json or val.json ([{"image", "question"}])."""
    listed = find(root, "llava_test.jsonl")
    if listed is not None:
        return llava_questions(listed, need(root, "test", "images"))
    problems = Problems()
    file = need(root, "test.json", "val.json", "llava_test.jsonl")
    folder = need(root, file.stem, "images")
    found = []
    for name, row in by_id(read_rows(file, problems), problems, lambda row: _image(row, problems)).items():
        question = text_of(row, problems, ("question",))
        if question is not None:
            prompt = question + UNANSWERABLE + SHORT
            found.append(Question(name, prompt, ("image", folder / name), {"question_id": name, "image": name}))
    problems.check()
    return found


def _image(row: Row, problems: Problems) -> str | None:
    return id_of(row, problems, ("image", "question_id"))


def vizwiz_truth(root: Path) -> Path | None:
    """Annotations with answers: val.json; those of the test set are not published."""
    return find(root, "val.json") if not find(root, "llava_test.jsonl", "test.json") else None


def vizwiz_score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """VizWiz's accuracy by VQA's rule, overall and by answer type; questions and answers are joined by image.

    questions_file: val.json, or LLaVA's questions (.jsonl) with val.json in `truth`. "as written": the human answers
    are left as they are, as in the challenge's own script, so that one with an article, a number word or
    punctuation is never matched.
    """
    images = {}
    if truth is not None:
        rows = by_id(read_rows(questions_file, problems), problems, lambda row: _image(row, problems)).values()
        images = {str(row.values.get("question_id")): row.values.get("image") for row in rows}

    def image(row: Row) -> str | None:
        name = _image(row, problems)
        return name if "image" in row.values else images.get(name, name)

    annotated = by_id(read_rows(truth or questions_file, problems), problems, image)
    answers = by_id(read_rows(answers_file, problems), problems, image)
    result = vqa_scores(annotated, answers, problems, answers_file, groups=("answer_type",))
    written, told = [], Problems(keep_going=True)  # vqa_scores has told of what is wrong with a row
    for name, row in annotated.items():
        humans = human_answers(row, told)
        if humans and (name in answers or not problems.partial):
            reply = text_of(answers[name], told) if name in answers else None
            written.append(0.0 if reply is None else leave_one_out(vqa_normalised(reply), humans))
    result["metrics"]["accuracy, human answers as written"] = percent(sum(written), len(written))
    return result


def vizwiz_submission(answers: dict[str, str], images: dict[str, str]) -> list[dict]:
    """[{"image", "answer"}] for the server."""
    return [{"image": images[name], "answer": evalai_normalised(answer)} for name, answer in answers.items()]


# TextVQA


def textvqa_questions(root: Path) -> list[Question]:
    """LLaVA's llava_textvqa_val_v051_ocr.jsonl, told apart by image and question: its ids are those of images."""
    file = need(root, "llava_textvqa_val_v051_ocr.jsonl", "llava_textvqa_*.jsonl")
    return llava_questions(file, need(root, "train_images", "images"), _numbered(_content))


def _content(row: Row) -> str:
    """Image id and question of one of LLaVA's questions ("text") or answers ("prompt")."""
    return f"{row.values.get('question_id')} {asked_in(str(row.values.get('prompt', row.values.get('text'))))}"


def _numbered(key: Callable[[Row], str]) -> Callable[[Row], str]:
    """`key`, but the second of two equal ones ends in " (2)": some images have a question twice."""
    seen: Counter = Counter()

    def numbered(row: Row) -> str:
        name = key(row)
        seen[name] += 1
        return name if seen[name] == 1 else f"{name} ({seen[name]})"

    return numbered


def textvqa_truth(root: Path) -> Path | None:
    """The annotations of the validation set."""
    return find(root, "TextVQA_0.5.1_val.json", "TextVQA_*_val.json")


def asked_in(prompt: str) -> str:
    """The question inside one of LLaVA's TextVQA prompts, in lower case (`prompt_processor` of eval_textvqa.py)."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: ") and (match := re.search("Question: (.*?) Short answer:", prompt, re.DOTALL)):
        return match[1].lower()
    if prompt.startswith("Reference OCR token:") and len(lines) == 3:
        return lines[1].lower()
    return lines[0].lower()


def textvqa_score(questions_file: Path, answers_file: Path, problems: Problems, truth: Path | None = None) -> dict:
    """TextVQA's accuracy; both sides through the EvalAI processor (`evalai_normalised`), as in LLaVA's evaluator.

    questions_file: TextVQA_0.5.1_val.json (or LLaVA's questions, with it beside them or in `truth`). An answer with
    a "prompt" is joined by image id and question, since LLaVA's question_id is the image's; one without by the
    annotations' own question_id.
    """
    if truth is None and questions_file.suffix == ".jsonl":
        truth = need(questions_file.parent, "TextVQA_0.5.1_val.json", "TextVQA_*_val.json")
    rows = read_rows(truth or questions_file, problems, field="data")
    content = _numbered(lambda row: f"{row.values.get('image_id')} {str(row.values.get('question')).lower()}")
    by_content = {content(row): str(row.values.get("question_id")) for row in rows}
    answered = _numbered(_content)

    def key(row: Row) -> str | None:
        if "prompt" not in row.values:
            return id_of(row, problems)
        return by_content.get(name := answered(row), name)

    answers = by_id(read_rows(answers_file, problems), problems, key)
    return vqa_scores(by_id(rows, problems), answers, problems, answers_file, normalised=evalai_normalised)
