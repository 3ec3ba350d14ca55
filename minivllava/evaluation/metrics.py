"""Metrics that benchmarks share: yes/no counts, answers in free text, intervals. No torch, no numpy.

All rates are in per cent, as papers print them; a rate of nothing is None, never 0.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %


def percent(hits: float, n: int) -> float | None:
    """100 hits / n, or None of nothing."""
    return 100 * hits / n if n else None


def wilson(hits: float, n: float) -> tuple[float, float] | None:
    """95 % Wilson score interval of a proportion of n independent trials, in per cent; None of no trials.

    Source: E. B. Wilson, 1927; unlike the normal approximation it stays inside 0 to 100 and is not empty there.
    """
    if not n:
        return None
    p, z2 = hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of scores from 0 to 1, in per cent; None if all are alike, which is no certainty.

    Wilson's where all are 0 or 1; else (VQA's thirds, a judge's grades) the normal approximation, cut at 0 and 100.
    """
    n = len(values)
    if all(value in (0, 1) for value in values):
        return wilson(sum(values), n)
    if min(values) == max(values):
        return None
    mean = sum(values) / n
    half = Z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(n - 1, 1) / n)
    return 100 * max(0.0, mean - half), 100 * min(1.0, mean + half)


def yes_no(predicted: Sequence[bool], truth: Sequence[bool]) -> dict:
    """POPE's figures for answers that are yes (True) or no: counts, and rates in per cent.

    Returns `n`, `tp`, `fp`, `tn`, `fn` (yes is positive), `accuracy`, `precision`, `recall`, `f1`, `yes_ratio`.
    Where a rate divides by zero (no yes said: precision) it is None; POPE's own script stops there.
    Source: github AoiDragon/POPE, evaluate.py.
    """
    pairs = list(zip(predicted, truth, strict=True))
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    return {
        "n": len(pairs), "tp": tp, "fp": fp, "tn": tn, "fn": fn,
        "accuracy": percent(tp + tn, len(pairs)),
        "precision": percent(tp, tp + fp),
        "recall": percent(tp, tp + fn),
        "f1": percent(2 * tp, 2 * tp + fp + fn),  # 2 p r / (p + r) with both written out
        "yes_ratio": percent(tp + fp, len(pairs)),
    }  # fmt: skip


def leave_one_out(answer: str, humans: Sequence[str]) -> float:
    """VQA's accuracy of an answer among (ten) human ones, 0 to 1, all normalised alike before.

    min(1, matches / 3) over the others, averaged over leaving each human out in turn: with ten humans the
    "10 choose 9". So 0, 1, 2, 3, 4+ matches of ten give 0, 0.3, 0.6, 0.9, 1. Source: visualqa.org/evaluation,
    github GT-Vision-Lab/VQA, vqaEval.py.
    """
    matches = sum(human == answer for human in humans)
    return sum(min(1, (matches - (human == answer)) / 3) for human in humans) / len(humans)


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon: "girl's", "2:50"
# The original's pattern (?!<=\d)(\.)(?!\d) looks ahead where it meant to look behind: what remains of it is
# "every point that no digit follows".
_POINT = re.compile(r"\.(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

# Words that are mended when one of their apostrophes is missing: dont -> don't, but not wouldntve.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905  (a list of quoted words would fill the screen)
_CONTRACTION = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTED for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


@lru_cache(maxsize=2**16)  # ten people give few different answers
def vqa_normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it.

    Line breaks and tabs to spaces; punctuation to a space, or to nothing where a space stands beside it or
    anywhere in the answer a comma stands between digits (1,000 -> 1000); points unless a digit follows; lower
    case; number words up to ten to digits ("none" is 0); articles dropped; apostrophes put back (dont -> don't).
    Source: github GT-Vision-Lab/VQA, vqaEval.py, `processPunctuation` and `processDigitArticle`.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    cleaned = answer
    digits = _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if beside_space or digits else " ")
    cleaned = _POINT.sub("", cleaned, count=32)  # the official call passes re.UNICODE, 32, where the count stands
    words = [_NUMBER.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTION.get(word, word) for word in words if word not in _ARTICLES)


def evalai_normalised(answer: str) -> str:
    """An answer as LLaVA's files for the VQAv2 and VizWiz servers hold it, and as TextVQA compares it.

    `vqa_normalised` after lower case, commas and question marks dropped, and "'s" set apart ("dog's" -> "dog 's").
    Source: the EvalAI answer processor of facebookresearch/mmf, in LLaVA as llava/eval/m4c_evaluator.py.
    """
    answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_normalised(answer)
