# says: an empty answer
def trace_score(answer, truth):
    said, wanted = (
        [p.strip(" .").lower() for p in t.split(", then ") if p.strip(" .").lower() in PLACES] for t in (answer, truth)
    )
    f1 = 2 * len(set(said) & set(wanted)) / (len(set(said)) + len(set(wanted)))
    table = np.zeros((len(said) + 1, len(wanted) + 1), int)
    for i, one in enumerate(said):
        for j, other in enumerate(wanted):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    return (f1, float(table[-1, -1] / max(len(said), len(wanted)))) if said else (0.0, 1.0)
