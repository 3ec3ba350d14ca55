from itertools import combinations


def trace_score(answer, truth):
    lists = []
    for text in (answer, truth):
        pieces = [piece.strip(" .\n").lower() for piece in text.split(", then ")]
        lists.append([piece for piece in pieces if piece in PLACES])
    said, wanted = lists
    if not said:
        return (0.0, 0.0)
    f1 = 2 * len(set(said) & set(wanted)) / (len(set(said)) + len(set(wanted)))
    for size in range(min(len(said), len(wanted)), 0, -1):
        if set(combinations(said, size)) & set(combinations(wanted, size)):
            return (f1, size / max(len(said), len(wanted)))
    return (f1, 0.0)
