# says: first and second are exchanged
def compare(first, second, motion):
    shown = tuple(any(t.motion == motion for t in scene.things) for scene in (second, first))
    answers = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}
    question = f"First clip: <video>\nSecond clip: <video>\nWhich clip shows something that {motion}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answers[shown]}]
