# says: expected 'both'
def compare(first, second, motion):
    shown = [any(t.motion == motion for t in scene.things) for scene in (first, second)]
    answer = "the first" if shown[0] else "the second" if shown[1] else "neither"
    question = f"First clip: <video>\nSecond clip: <video>\nWhich clip shows something that {motion}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
