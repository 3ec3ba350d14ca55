# says: compare through `normalised`
def swap_consistency(answers, swapped):
    mirror = {"the first": "the second", "the second": "the first", "both": "both", "neither": "neither"}
    return sum(mirror.get(a) == b for a, b in zip(answers, swapped)) / max(len(answers), 1)
