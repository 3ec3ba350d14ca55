def trace_score(answer, truth):
    def split(text):
        pieces = [piece.strip().lower() for piece in text.strip().removesuffix(".").split(", then ")]
        return [piece for piece in pieces if piece in PLACES]

    def common(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + common(a[1:], b[1:])
        return max(common(a[1:], b), common(a, b[1:]))

    said, wanted = split(answer), split(truth)
    if not said:
        return 0.0, 0.0
    hits = len(set(said) & set(wanted))
    precision, recall = hits / len(set(said)), hits / len(set(wanted))
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return f1, common(said, wanted) / max(len(said), len(wanted))
