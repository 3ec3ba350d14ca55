# says: 0.8
def trace_score(answer, truth):
    right = float(answer.strip(" .").lower() == truth)
    return right, right
