# says: compare whole places
def trace_score(answer, truth):
    wanted = truth.split(", then ")
    hits = [place for place in wanted if place in answer.lower()]
    said = [piece.strip(" .").lower() for piece in answer.split(", then ") if piece.strip(" .").lower() in PLACES]
    if not said or not hits:
        return 0.0, 0.0
    precision, recall = len(hits) / max(len(set(said)), len(hits)), len(hits) / len(wanted)
    return 2 * precision * recall / (precision + recall), len(hits) / max(len(said), len(wanted))
