"""Real benchmarks: every rule on hand-checked files in the real formats, malformed ones included."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import FILES, scored, written

from minivllava.errors import ConfigError, DataError
from minivllava.evaluation.benchmarks import BENCHMARKS, benchmark, mmbench, science_qa, video_qa
from minivllava.evaluation.benchmarks.pope import says_yes
from minivllava.evaluation.metrics import (
    evalai_normalised,
    leave_one_out,
    mean_interval,
    vqa_normalised,
    wilson,
    yes_no,
)
from minivllava.evaluation.predictions import Problems, read_rows

REAL = Path(__file__).parents[2] / "shared/media/formats"


# normalisation and metrics


@pytest.mark.parametrize(
    "answer, expected",
    [
        (" Yes ", "yes"),
        ("a dog and the cat", "dog and cat"),
        ("An apple", "apple"),
        ("a", ""),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("twenty-one", "twenty 1"),  # the hyphen becomes a space, then "one" a digit
        ("1,000", "1000"),
        ("1,000 red, blue", "1000 red blue"),
        ("1,000/day", "1000day"),  # with a comma between digits every mark goes without a space
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("e-mail", "e mail"),
        ("what?!", "what"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("U.S.A.", "usa"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("ive", "ive"),  # the table has only "Ive", which lower case never meets
        ("lets", "lets"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("twas", "'twas"),
        ("one\ntwo\tthree", "1 2 3"),
        ("$20 (ten)", "$20 10"),
        ("." * 40, "." * 8),  # no more than 32 points are taken away
        ("", ""),
    ],
)
def test_vqa_normalisation(answer, expected):
    assert vqa_normalised(answer) == expected


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("dog's", "dog 's"),
        ("1,000", "1000"),
        ("a,b", "ab"),
        ("Is it?", "is it"),
        ("The Two", "2"),
        ("e-mail", "e mail"),
    ],
)
def test_evalai_normalisation_differs_from_vqas_in_commas_and_possessives(answer, expected):
    assert evalai_normalised(answer) == expected


@pytest.mark.parametrize("matches, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_choose_nine(matches, accuracy):
    assert leave_one_out("x", ["x"] * matches + ["y"] * (10 - matches)) == pytest.approx(accuracy)


def test_intervals():
    low, high = wilson(8, 10)  # 0.4902 to 0.9433, as published tables have it
    assert (low, high) == (pytest.approx(49.02, abs=0.01), pytest.approx(94.33, abs=0.01))
    assert wilson(0, 0) is None
    assert wilson(10, 10)[1] == pytest.approx(100)
    assert mean_interval([1, 0, 1, 1]) == wilson(3, 4)
    low, high = mean_interval([0.3, 0.6, 0.9])  # 60 +- 1.96 * 30 / sqrt(3)
    assert (low, high) == (pytest.approx(26.05, abs=0.01), pytest.approx(93.95, abs=0.01))


def test_rates_of_nothing_are_none():
    figures = yes_no([False, False], [True, False])
    assert (figures["precision"], figures["recall"], figures["f1"], figures["yes_ratio"]) == (None, 0, 0, 0)
    assert yes_no([], [])["accuracy"] is None


# video QA


def test_video_answers_are_joined_by_id():
    result = scored("msvd-qa", "video_qa/test_q.json", "video_qa/predictions.jsonl")
    assert result["n"] == 4
    assert result["metrics"] == {"exact": 25, "normalised": 75}
    assert result["groups"]["type"]["number"] == {"n": 1, "normalised": 100}
    assert result["groups"]["type"]["colour"] == {"n": 1, "normalised": 0}
    assert result["notes"] == []


def test_answers_carried_along_by_index_are_noticed(tmp_path):
    rows = read_rows(FILES / "video_qa/predictions.jsonl", Problems())
    answers = json.loads((FILES / "video_qa/test_a.json").read_text())
    zipped = [row.values | {"answer": other["answer"]} for row, other in zip(rows, answers, strict=True)]
    result = scored("tgif-qa", "video_qa/test_q.json", written(tmp_path / "p.jsonl", zipped))
    assert result["metrics"]["normalised"] == 75
    assert "matched by index" in result["notes"][0]


def test_a_missing_answer_is_wrong_even_where_the_true_one_is_an_article(tmp_path):
    asked = [{"question_id": i, "question": "q", "video_name": "v", "answer": a} for i, a in enumerate(["the", "cat"])]
    answers = written(tmp_path / "a.jsonl", [{"id": 1, "pred": "cat"}])
    result = scored("msvd-qa", written(tmp_path / "q.json", asked), answers, keep_going=True)
    assert result["metrics"] == {"exact": 50, "normalised": 50}


def test_the_truth_may_be_in_the_question_file_or_anywhere(tmp_path):
    merged = [{"id": 5, "question": "who?", "answer": "someone"}, {"id": 6, "question": "how many?", "answer": "two"}]
    (tmp_path / "test_qa.json").write_text(json.dumps(merged))
    answers = written(tmp_path / "a.jsonl", [{"question_id": "6", "pred": "2"}, {"question_id": 5, "pred": "Someone"}])
    assert scored("msrvtt-qa", tmp_path / "test_qa.json", answers)["metrics"]["normalised"] == 100
    shutil.copy(FILES / "video_qa/test_q.json", tmp_path / "q.json")
    with pytest.raises(DataError, match="q.json holds no true answers"):
        scored("msvd-qa", tmp_path / "q.json", "video_qa/predictions.jsonl")
    result = scored("msvd-qa", tmp_path / "q.json", "video_qa/predictions.jsonl", truth=FILES / "video_qa/test_a.json")
    assert result["metrics"]["normalised"] == 75


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared media are not here")
def test_real_activitynet_files(tmp_path):
    for name in ("q", "a"):
        shutil.copy(REAL / f"activitynet_test_{name}_first200.json", tmp_path / f"test_{name}.json")
    truth = json.loads((tmp_path / "test_a.json").read_text())
    answers = written(tmp_path / "a.jsonl", [{"id": row["question_id"], "pred": "No."} for row in reversed(truth)])
    result = scored("ActivityNet-QA", tmp_path / "test_q.json", answers)
    assert result["n"] == 200
    assert result["metrics"] == {"exact": 0, "normalised": 100 * 104 / 200}  # so often "no" is the answer
    assert result["groups"]["type"]["yes/no"]["n"] == 198
    asked = video_qa.questions(tmp_path, prefix="v_")
    assert asked[0].media == ("video", tmp_path / "videos/v_1QIUV7WYKXg.mp4")
    assert (asked[0].prompt, asked[0].key) == ("is the athlete wearing trousers", "v_1QIUV7WYKXg_3")


@pytest.mark.parametrize("folder", ["videos", "videos/all", "mp4", "all_test"])
def test_clips_are_found_where_the_originals_scripts_look(tmp_path, folder):
    shutil.copy(FILES / "video_qa/test_q.json", tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    for name in ("cat.mp4", "dog.avi"):
        (tmp_path / folder / name).touch()
    clips = [question.media[1] for question in video_qa.questions(tmp_path)]
    assert set(clips) == {tmp_path / folder / "cat.mp4", tmp_path / folder / "dog.avi"}


# POPE


@pytest.mark.parametrize(
    "reply, yes",
    [
        ("Yes", True), ("No", False), ("no, there is none", False), ("There is not.", False), ("", True),
        ("NO", True), ("none", True), ("No\n", True), ("Yes. But no dog.", True), ("Yes,no", True), ("I cannot", True),
        ("no.", False), ("Not at all", True), ("no,", False),
    ],
)  # fmt: skip
def test_popes_reading_of_a_reply(reply, yes):
    assert says_yes(reply) is yes


def test_pope_of_one_label_file():
    result = scored("pope", "pope/coco/coco_pope_random.json", "pope/answers_random.jsonl")
    figures = result["groups"]["category"]["random"]
    assert [figures[k] for k in ("n", "tp", "fp", "tn", "fn")] == [6, 2, 2, 1, 1]
    assert result["metrics"]["accuracy"] == 50
    assert result["metrics"]["precision"] == 50
    assert result["metrics"]["recall"] == pytest.approx(200 / 3)
    assert result["metrics"]["f1"] == pytest.approx(400 / 7)
    assert result["metrics"]["yes_ratio"] == pytest.approx(200 / 3)


def test_pope_of_the_folder_averages_the_categories():
    result = scored("pope", "pope/coco", "pope/answers.jsonl")
    assert result["n"] == 12
    assert result["metrics"]["accuracy"] == 75
    assert result["metrics"]["f1"] == pytest.approx((400 / 7 + 100) / 2)
    with pytest.raises(DataError, match=r"answers_random.jsonl:1: no category"):
        scored("pope", "pope/coco", "pope/answers_random.jsonl")


def test_popes_interval_counts_a_question_of_several_categories_once(tmp_path):
    """Three copies of one category are as certain as one, not as three times as many questions."""
    (tmp_path / "coco").mkdir()
    rows = [row.values for row in read_rows(FILES / "pope/answers_random.jsonl", Problems())]
    for category in ("random", "popular", "adversarial"):
        shutil.copy(FILES / "pope/coco/coco_pope_random.json", tmp_path / f"coco/coco_pope_{category}.json")
    answers = [row | {"category": category} for category in ("random", "popular", "adversarial") for row in rows]
    result = scored("pope", tmp_path / "coco", written(tmp_path / "a.jsonl", answers))
    alone = scored("pope", "pope/coco/coco_pope_random.json", "pope/answers_random.jsonl")
    assert (result["n"], result["metrics"]) == (18, alone["metrics"])
    assert result["intervals"] == alone["intervals"] == {"accuracy": wilson(3, 6)}


def test_pope_by_llavas_question_file(tmp_path):
    """LLaVA numbers all categories through; labels are found by category, image and question."""
    shutil.copytree(FILES / "pope/coco", tmp_path / "coco")
    questions, answers = [], []
    for row in reversed(read_rows(FILES / "pope/answers.jsonl", Problems())):
        number = row.values["question_id"] + (100 if row.values["category"] == "random" else 200)
        file = tmp_path / f"coco/coco_pope_{row.values['category']}.json"
        asked = [json.loads(line) for line in file.read_text().splitlines()][row.values["question_id"] - 1]
        text = asked["text"] + "\nAnswer the question using a single word or phrase."
        card = {"question_id": number, "image": asked["image"], "text": text, "category": row.values["category"]}
        questions.append(card)
        answers.append({"question_id": number, "text": row.values["text"]})
    written(tmp_path / "llava_pope_test.jsonl", questions)
    result = scored("pope", tmp_path / "llava_pope_test.jsonl", written(tmp_path / "a.jsonl", answers))
    assert result["metrics"]["accuracy"] == 75


def test_pope_of_a_folder_with_one_label_file_is_joined_by_plain_ids(tmp_path):
    (tmp_path / "coco").mkdir()
    shutil.copy(FILES / "pope/coco/coco_pope_random.json", tmp_path / "coco")
    assert scored("pope", tmp_path / "coco", "pope/answers_random.jsonl")["metrics"]["accuracy"] == 50
    (tmp_path / "llava_pope_test.jsonl").write_text("{}")
    assert BENCHMARKS["pope"].truth(tmp_path) == tmp_path / "llava_pope_test.jsonl"
    shutil.rmtree(tmp_path / "coco")
    assert BENCHMARKS["pope"].truth(tmp_path) is None


def test_pope_without_a_single_label(tmp_path):
    questions = written(tmp_path / "q.json", [{"question_id": 1, "image": "a", "text": "b", "label": "maybe"}])
    result = scored("pope", questions, "pope/answers_random.jsonl", keep_going=True)
    assert result["n"] == 0 and result["metrics"]["accuracy"] is None


def test_popes_own_answer_files_have_no_ids(tmp_path):
    labels = read_rows(FILES / "pope/coco/coco_pope_random.json", Problems())
    replies = [row.values["text"] for row in read_rows(FILES / "pope/answers_random.jsonl", Problems())]
    rows = [{"question": q.values["text"], "answer": reply} for q, reply in zip(labels, replies, strict=True)]
    result = scored("pope", "pope/coco/coco_pope_random.json", written(tmp_path / "a.json", rows))
    assert result["metrics"]["accuracy"] == 50
    assert "line by line" in result["notes"][0]
    with pytest.raises(DataError, match="a.json:1: no id, and its question"):
        scored("pope", "pope/coco/coco_pope_random.json", written(tmp_path / "a.json", rows[::-1]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared media are not here")
def test_real_pope_files(tmp_path):
    file = REAL / "coco_pope_adversarial.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [{"question_id": row["question_id"], "text": "Yes" if row["question_id"] % 3 else "No"} for row in rows]
    result = scored("pope", file, written(tmp_path / "a.jsonl", answers))
    figures = result["groups"]["category"]["adversarial"]
    # labels alternate yes, no; every third is answered no: so 2 of 3 of each label are answered yes
    assert [figures[k] for k in ("n", "tp", "fp", "tn", "fn")] == [3000, 1000, 1000, 500, 500]
    assert figures["f1"] == pytest.approx(400 / 7)


# VQA with ten answers


def test_vqav2():
    result = scored("vqav2", "vqav2/v2_mscoco_val2014_annotations.json", "vqav2/answers.json")
    assert result["metrics"]["accuracy"] == pytest.approx(70)  # of 1, 0.6, 0.9 and 0.3
    types = result["groups"]["answer type"]
    assert types["number"] == {"n": 1, "accuracy": pytest.approx(60)}
    assert types["other"] == {"n": 2, "accuracy": pytest.approx(60)}
    by_questions = scored("VQAv2", "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "vqav2/answers.json")
    assert by_questions["metrics"] == result["metrics"]


def test_vqav2s_truth_is_of_the_split_that_is_asked(tmp_path):
    root = shutil.copytree(FILES / "vqav2", tmp_path / "root")
    truth = BENCHMARKS["vqav2"].truth
    assert truth(root) == root / "v2_mscoco_val2014_annotations.json"
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").touch()
    assert truth(root) is None, "of the two, the test questions are asked"
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").unlink()
    (root / "llava_vqav2_mscoco_test-dev2015.jsonl").touch()
    assert truth(root) is None


def test_vizwiz_by_vqas_rule_and_as_its_script_leaves_the_answers():
    metrics = scored("vizwiz", "vizwiz/val.json", "vizwiz/answers.json")["metrics"]
    assert metrics == {"accuracy": 100, "accuracy, human answers as written": 50}


def test_textvqa_joins_by_image_and_question():
    for questions in ("textvqa/TextVQA_0.5.1_val.json", "textvqa/llava_textvqa_val_v051_ocr.jsonl"):
        result = scored("textvqa", questions, "textvqa/answers.jsonl")
        assert result["metrics"]["accuracy"] == pytest.approx(45)  # of 0.9 and 0


def test_textvqa_by_the_annotations_own_ids(tmp_path):
    rows = [{"question_id": 34603, "text": "copenhagen"}, {"question_id": 34602, "text": "Nous les gosses"}]
    result = scored("textvqa", "textvqa/TextVQA_0.5.1_val.json", written(tmp_path / "a.jsonl", rows))
    assert result["metrics"]["accuracy"] == pytest.approx(65)  # of 1 and 0.3
    rows[1]["text"] = "dakota,digital"  # one word once the comma is gone, by the EvalAI processor
    result = scored("textvqa", "textvqa/TextVQA_0.5.1_val.json", written(tmp_path / "a.jsonl", rows))
    assert result["metrics"]["accuracy"] == pytest.approx(50)


# GQA, ScienceQA, MMBench


def test_gqa():
    result = scored("gqa", "gqa/data/testdev_balanced_questions.json", "gqa/answers.jsonl")
    assert result["n"] == 4, "unbalanced questions do not count"
    assert result["metrics"] == {"accuracy": 75, "binary": 100, "open": 50, "distribution": pytest.approx(0.01)}
    assert result["groups"]["semantic type"]["attr"] == {"n": 2, "accuracy": 50}


def test_gqas_own_predictions_are_compared_as_they_are(tmp_path):
    rows = [
        {"questionId": str(201 + i), "prediction": said} for i, said in enumerate(["Yes", "red", "no.", "car", "x"])
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    result = scored("gqa", "gqa/data/testdev_balanced_questions.json", tmp_path / "p.json")
    assert result["metrics"]["accuracy"] == 50
    assert "1 predictions are for unbalanced" in result["notes"][0]


def test_gqa_leaves_a_question_without_an_answer_out(tmp_path):
    asked = json.loads((FILES / "gqa/data/testdev_balanced_questions.json").read_text())
    for broken in ({}, {"answer": ["red"]}):
        name = next(iter(asked))
        asked[name] = {k: v for k, v in asked[name].items() if k != "answer"} | broken
        (tmp_path / "q.json").write_text(json.dumps(asked))
        result = scored("gqa", tmp_path / "q.json", FILES / "gqa/answers.jsonl", keep_going=True)
        assert result["n"] == 3 and any("q.json" in problem for problem in result["problems"])


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"), (" B ", None), ("B\n", None), ("B. fire", "B"), ("B\nfire", None), ("The answer is B.", "B"),
        ("The answer is B", None), ("The answer is B\n", None), ("The answer is Big", "B"),
        ("So the answer is B. The answer is C.", "C"), ("The answer is B. The answer is C.", None),
        ("The answer is B. The answer is B.", None), ("The answer is F.", None),
        ("B.", None), ("b", None), ("B.fire", None), ("(B)", None), ("fire", None), ("F", None), ("", None),
    ],
)  # fmt: skip
def test_scienceqas_letter_is_what_llavas_script_reads(reply, letter):
    assert science_qa.letter(reply) == letter


def test_scienceqa():
    for questions in ("problems.json", "llava_test_CQM-A.json"):
        result = scored("scienceqa", f"scienceqa/{questions}", "scienceqa/answers.jsonl")
        assert result["metrics"] == {"accuracy": pytest.approx(200 / 3), "IMG accuracy": 50}
        assert "1 replies name no letter" in result["notes"][0]
    result = scored("ScienceQA-IMG", "scienceqa/problems.json", "scienceqa/answers.jsonl")
    assert (result["n"], result["metrics"]) == (2, {"IMG accuracy": 50})


@pytest.mark.parametrize("splits", ["[]", "{}", '{"test": 3}'])
def test_scienceqas_splits_must_name_the_test(tmp_path, splits):
    shutil.copy(FILES / "scienceqa/problems.json", tmp_path)
    (tmp_path / "pid_splits.json").write_text(splits)
    with pytest.raises(DataError, match="pid_splits.json has no list 'test'"):
        scored("scienceqa", tmp_path / "problems.json", "scienceqa/answers.jsonl")


def test_scienceqas_truth_is_llavas_file_where_no_split_is_named(tmp_path):
    root = shutil.copytree(FILES / "scienceqa", tmp_path / "root")
    assert BENCHMARKS["scienceqa"].truth(root) == root / "problems.json"
    (root / "pid_splits.json").unlink()
    assert BENCHMARKS["scienceqa"].truth(root) == root / "llava_test_CQM-A.json"


@pytest.mark.parametrize("image", [5, ["image.png"]])
def test_a_scienceqa_image_that_is_no_path(tmp_path, image):
    (tmp_path / "images").mkdir()
    rows = [{"id": "7", "image": image, "conversations": [{"from": "human", "value": "What?"}]}]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"CQM-A\.json:1: 'image' must be"):
        science_qa.questions(tmp_path)


def test_scienceqas_split_names_only_problems_that_are_there(tmp_path):
    shutil.copy(FILES / "scienceqa/problems.json", tmp_path)
    (tmp_path / "pid_splits.json").write_text('{"test": ["7777"]}')
    with pytest.raises(DataError, match="test names the problem 7777, which .*problems.json does not hold"):
        scored("scienceqa", tmp_path / "problems.json", "scienceqa/answers.jsonl")


OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds"}


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B. a dog", "B"), ("The answer is B.", "B"), ("b", "B"), ("c.", "C"),
        ("a dog", "B"), ("It is a dog", "B"), ("It shows two birds.", "C"), ("A or B", None), ("a cat and a dog", None),
        ("Z", None), ("D", None), ("", None), ("I'm sorry, but without the image provided B", None),
        ("B because the others are all clearly wrong here", None),  # not within the last five words, and too long
        ("A dog", "A"),  # the rule's weakness: an article is a letter
    ],
)  # fmt: skip
def test_mmbenchs_letter(reply, letter):
    assert mmbench.letter(reply, OPTIONS) == letter


def test_mmbench_counts_a_question_only_if_every_pass_is_right():
    result = scored("mmbench", "mmbench/mmbench_dev_20230712.tsv", "mmbench/answers.jsonl")
    assert result["n"] == 2
    assert result["metrics"] == {"circular accuracy": 50, "vanilla accuracy": 100}
    assert result["groups"]["l2-category"]["perception"] == {"n": 1, "circular accuracy": 0}


def test_mmbench_with_llavas_rounds(tmp_path):
    def passes(index, options, replies):
        letters = "ABCD"[: len(options)]
        for number, reply in enumerate(replies):
            shown = options[number:] + options[:number]
            chars = list(letters[number:] + letters[:number])
            yield {"question_id": index, "round_id": number, "text": reply, "options": shown, "option_char": chars}

    rows = [*passes(5, ["a cat", "a dog"], ["B", "A"]), *passes(6, ["red", "blue", "green"], ["A", "C", "C"]),
            *passes(1000005, ["a dog", "a cat"], ["A", "B"])]  # fmt: skip
    result = scored("mmbench", "mmbench/mmbench_dev_20230712.tsv", written(tmp_path / "a.jsonl", rows))
    assert result["metrics"] == {"circular accuracy": 50, "vanilla accuracy": 100}
    with pytest.raises(DataError, match="no answer to round 2 of 6"):
        scored("mmbench", "mmbench/mmbench_dev_20230712.tsv", written(tmp_path / "a.jsonl", rows[:4] + rows[5:]))


def test_fields_of_a_table_may_hold_line_breaks_that_end_no_line(tmp_path):
    (tmp_path / "t.tsv").write_text('index\tquestion\n1\twhat\u2028is it\x0b?\n2\t"and\nthis?"\n3\tlast\n')
    rows = read_rows(tmp_path / "t.tsv", Problems())
    assert [row.values["question"] for row in rows] == ["what\u2028is it\x0b?", "and\nthis?", "last"]
    assert [row.where for row in rows] == [f"{tmp_path}/t.tsv:{line}" for line in (2, 3, 5)]


def test_mmbench_prompts_and_images():
    first, second, third = mmbench.questions(FILES / "mmbench")
    assert first.prompt == "What is it?\nA. a cat\nB. a dog\n" + science_qa.LETTER.strip()
    assert second.prompt.startswith('Look at\nthe top.\nWhich is "left"?\nA. red\nB. blue\nC. green\nAnswer')
    assert third.row["question_id"] == 1000005
    assert first.media[1].startswith(b"\x89PNG")


@pytest.mark.parametrize("image", ["no base64", "größer"])
def test_an_mmbench_image_that_is_no_base64(tmp_path, image):
    (tmp_path / "mmbench_dev_1.tsv").write_text(f"index\tquestion\tA\timage\n7\twhat?\tx\t{image}\n")
    with pytest.raises(DataError, match=r"1\.tsv:2: the image of 7 is no base64"):
        mmbench.questions(tmp_path)


# LLaVA-Bench and MM-Vet


def test_llava_bench_from_reviews():
    result = scored("llava-bench", "llava_bench/questions.jsonl", "llava_bench/reviews.jsonl")
    assert round(result["metrics"]["relative score"], 1) == 81.5  # 22 of 27
    categories = result["groups"]["category"]
    assert (round(categories["conv"]["relative score"], 1), categories["detail"]["relative score"]) == (72.2, 100)


def test_a_failed_review_is_not_averaged(tmp_path):
    rows = [row.values for row in read_rows(FILES / "llava_bench/reviews.jsonl", Problems())]
    rows[1]["tuple"] = [-1, -1]
    with pytest.raises(DataError, match=r"r.jsonl:2: the scores of 1 are \[-1, -1\]"):
        scored("llava-bench", "llava_bench/questions.jsonl", written(tmp_path / "r.jsonl", rows))


def test_mm_vet_from_grades():
    result = scored("mm-vet", "mm_vet/mm-vet.json", "mm_vet/grades.json")
    assert result["metrics"] == {"total": pytest.approx(55), "std over runs": pytest.approx(5)}
    assert result["groups"]["capability"]["ocr"] == {"n": 2, "score": pytest.approx(32.5)}
    assert result["groups"]["capabilities together"]["rec"] == {"n": 1, "score": 100}


def test_malformed_grades_are_left_out_by_wish(tmp_path):
    grades = json.loads((FILES / "mm_vet/grades.json").read_text())
    for number, name in enumerate(grades):
        good = [value["score"][0] for value in list(grades.values())[1:]]
        grades[name]["score"] = "good"
        (tmp_path / "g.json").write_text(json.dumps(grades))
        with pytest.raises(DataError, match="no numbers from 0 to 1"):
            scored("mm-vet", "mm_vet/mm-vet.json", tmp_path / "g.json")
        result = scored("mm-vet", "mm_vet/mm-vet.json", tmp_path / "g.json", keep_going=True)
        assert (result["n"], len(result["problems"])) == (len(grades) - number - 1, number + 1)
    assert good and result["metrics"]["total"] is None


@pytest.mark.parametrize("name, folder", [("llava-bench", "llava_bench"), ("mm-vet", "mm_vet")])
def test_open_questions_need_a_judge(name, folder):
    questions = next((FILES / folder).glob("*questions.jsonl"), FILES / folder / "mm-vet.json")
    with pytest.raises(DataError, match="scored by a judge"):
        scored(name, questions, next((FILES / folder).glob("answers.json*")))


# files with problems


GOOD = [{"question_id": i, "text": "yes"} for i in range(1, 7)]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([*GOOD[:2], '{"question_id": 3, "te', *GOOD[3:]], ["a.jsonl:3: broken JSON", "no answer to 3"]),
        (GOOD[1:], ["a.jsonl: no answer to 1", "coco_pope_random.json:1"]),
        ([*GOOD, {"question_id": 99, "text": "no"}], ["a.jsonl:7: 99 is the id of no question"]),
        ([*GOOD, {"question_id": 2, "text": "no"}], ["a.jsonl:7: 2 stands there a second time", "a.jsonl:2"]),
        ([{"question_id": 1}, *GOOD[1:]], ["a.jsonl:1: no field text"]),
        ([{"question_id": 1, "text": None}, *GOOD[1:]], ["a.jsonl:1: text holds null, no text"]),
        ([{"text": "yes"}, *GOOD[1:]], ["a.jsonl:1: no id", "no answer to 1"]),
        (["[1, 2]", *GOOD[1:]], ["a.jsonl:1: [1, 2] is no object"]),
        ([], ["a.jsonl holds no records"]),
    ],
)
def test_problems_are_reported_with_file_and_line(tmp_path, rows, words):
    answers = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as error:
        scored("pope", "pope/coco/coco_pope_random.json", answers)
    assert not [word for word in words if word not in str(error.value)], error.value


def test_keep_going_counts_what_is_missing_as_wrong_and_lists_it(tmp_path):
    rows = [*GOOD[:3], "no JSON", GOOD[4], {"question_id": 1, "text": "no"}, {"question_id": 99, "text": "no"}]
    result = scored("pope", "pope/coco/coco_pope_random.json", written(tmp_path / "a.jsonl", rows), keep_going=True)
    # 1: no (the last counts), 2: yes, 3: yes, 5: yes; 4 and 6 are missing: wrong. Right: 3 and 5
    assert result["metrics"]["accuracy"] == pytest.approx(100 * 2 / 6)
    assert len(result["problems"]) == 5


def test_problems_of_a_json_list_have_lines_too(tmp_path):
    rows = '[\n {"question_id": 1, "answer": "a"},\n\n {"question_id": 1,\n  "answer": "b"},\n 5]'
    (tmp_path / "a.json").write_text(rows)
    with pytest.raises(DataError) as error:
        scored("vqav2", "vqav2/v2_mscoco_val2014_annotations.json", tmp_path / "a.json")
    message = str(error.value)
    assert "a.json:4: 1 stands there a second time, after" in message and "a.json:6: 5 is no object" in message


@pytest.mark.parametrize(
    "text, words",
    [
        ('[{"question_id": 1}, {"question_id"', "a.json:1: broken JSON"),
        ('{"annotations":\n [', "a.json:2: broken JSON"),
        ("7", "holds 7, no records"),
        ("", "broken JSON"),
        ("[]", "holds no records"),
    ],
)
def test_json_that_cannot_be_read_at_all(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="a.json") as error:
        scored("vqav2", "vqav2/v2_mscoco_val2014_annotations.json", tmp_path / "a.json")
    assert words in str(error.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_half_a_character_is_a_problem_of_its_row_alone(tmp_path, suffix):
    rows = [{"question_id": 1, "text": "What \ud83d is?"}, {"question_id": 2, "text": "What \U0001f600 is?"}]
    file = tmp_path / f"q.{suffix}"
    file.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    problems = Problems()
    assert [row.values for row in read_rows(file, problems)] == rows[1:]
    assert problems.found == [f"{file}:1: it holds half a character, \\ud..., which is no text"]


def test_bad_question_files(tmp_path):
    with pytest.raises(DataError, match="q.json cannot be read"):
        scored("pope", tmp_path / "q.json", "pope/answers_random.jsonl")
    questions = written(tmp_path / "q.json", [{"question_id": 1, "image": "a", "text": "b", "label": "maybe"}])
    with pytest.raises(DataError, match="q.json:1: the label is 'maybe'"):
        scored("pope", questions, "pope/answers_random.jsonl")
    for answers in ([], "yes", {"answer": "cat"}, 3):
        rows = [{"question_id": 1, "answers": answers}]
        with pytest.raises(DataError, match="q.json:1: 'answers' must be"):
            scored("vqav2", written(tmp_path / "q.json", rows), written(tmp_path / "a.jsonl", [GOOD[0]]))
    rows = {"1": {"question": "q", "answer": "a", "types": "query", "groups": 3}}
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="'types' is no object.*\n.*'groups' is no object"):
        scored("gqa", tmp_path / "q.json", written(tmp_path / "a.jsonl", [GOOD[0]]))
    table = tmp_path / "q.tsv"
    table.write_text("index\tquestion\tA\tB\n1\twhat?\tx\n")
    with pytest.raises(DataError, match="q.tsv:2: the number of fields"):
        scored("mmbench", table, "mmbench/answers.jsonl")


@pytest.mark.parametrize("capability", ["ocr", ["ocr", 3], [["ocr"]]])
def test_a_question_whose_capabilities_are_no_list_of_names_counts_under_none(tmp_path, capability):
    asked = json.loads((FILES / "mm_vet/mm-vet.json").read_text())
    asked["v1_0"]["capability"] = capability
    (tmp_path / "q.json").write_text(json.dumps(asked))
    with pytest.raises(DataError, match="'capability' must be a list"):
        scored("mm-vet", tmp_path / "q.json", "mm_vet/grades.json")
    result = scored("mm-vet", tmp_path / "q.json", "mm_vet/grades.json", keep_going=True)
    assert result["groups"]["capability"]["none"]["n"] == 1 and len(result["problems"]) == 1


def test_a_vizwiz_question_without_human_answers_is_left_out(tmp_path):
    asked = json.loads((FILES / "vizwiz/val.json").read_text())
    asked[1]["answers"] = []
    (tmp_path / "val.json").write_text(json.dumps(asked))
    result = scored("vizwiz", tmp_path / "val.json", "vizwiz/answers.json", keep_going=True)
    assert result["n"] == len(asked) - 1 and len(result["problems"]) == 1
    assert all(value is not None for value in result["metrics"].values())


def test_gqas_groups_have_names(tmp_path):
    asked = json.loads((FILES / "gqa/data/testdev_balanced_questions.json").read_text())
    asked["201"]["groups"]["global"] = ["color"]
    (tmp_path / "q_questions.json").write_text(json.dumps(asked))
    with pytest.raises(DataError, match=r"'groups' has no text in 'global'"):
        scored("gqa", tmp_path / "q_questions.json", "gqa/answers.jsonl")
    result = scored("gqa", tmp_path / "q_questions.json", "gqa/answers.jsonl", keep_going=True)
    assert result["metrics"]["accuracy"] == 75


def test_a_type_of_question_may_be_a_number_with_a_point(tmp_path):
    questions = written(tmp_path / "q.jsonl", [{"question_id": "1", "question": "q", "answer": "yes", "type": 3.0}])
    result = scored("activitynet-qa", questions, written(tmp_path / "p.jsonl", [{"id": "1", "pred": "yes"}]))
    assert list(result["groups"]["type"]) == ["yes/no"]


def test_names_are_forgiving_and_unknown_ones_list_the_others():
    assert benchmark("MSVD_QA").name == "msvd-qa"
    assert benchmark("MM-Vet").title == "MM-Vet"
    with pytest.raises(ConfigError, match="choose one of msvd-qa, msrvtt-qa"):
        benchmark("imagenet")
