# says: must become 'the second'
def swap_consistency(answers, swapped):
    return sum(normalised(a) == normalised(b) for a, b in zip(answers, swapped)) / max(len(answers), 1)
