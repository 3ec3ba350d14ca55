# says: a subsequence may skip
def trace_score(answer, truth):
    said, wanted = (
        [p.strip(" .").lower() for p in t.split(", then ") if p.strip(" .").lower() in PLACES] for t in (answer, truth)
    )
    if not said:
        return 0.0, 0.0
    f1 = 2 * len(set(said) & set(wanted)) / (len(set(said)) + len(set(wanted)))
    return f1, sum(a == b for a, b in zip(said, wanted)) / max(len(said), len(wanted))
