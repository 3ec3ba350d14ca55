# says: the order is ignored
def trace_score(answer, truth):
    said, wanted = (
        [p.strip(" .").lower() for p in t.split(", then ") if p.strip(" .").lower() in PLACES] for t in (answer, truth)
    )
    if not said:
        return 0.0, 0.0
    hits = len(set(said) & set(wanted))
    return 2 * hits / (len(set(said)) + len(set(wanted))), hits / max(len(said), len(wanted))
