def swap_consistency(answers, swapped):
    good = {("the first", "the second"), ("the second", "the first"), ("both", "both"), ("neither", "neither")}
    if not answers:
        return 0.0
    return sum((normalised(a), normalised(b)) in good for a, b in zip(answers, swapped)) / len(answers)
