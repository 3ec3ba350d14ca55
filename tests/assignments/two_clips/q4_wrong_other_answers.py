# says: an answer that is none of the four
def swap_consistency(answers, swapped):
    mirror = {"the first": "the second", "the second": "the first"}
    pairs = [(normalised(a), normalised(b)) for a, b in zip(answers, swapped)]
    return sum(mirror.get(a, a) == b for a, b in pairs) / max(len(pairs), 1)
