def swap_consistency(answers, swapped):
    def mirrored(answer):
        if answer in ("the first", "the second"):
            return "the second" if answer == "the first" else "the first"
        return answer if answer in ANSWERS else None

    hits = [mirrored(normalised(a)) == normalised(b) for a, b in zip(answers, swapped)]
    return float(np.mean(hits)) if hits else 0.0
