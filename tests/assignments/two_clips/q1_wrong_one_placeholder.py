# says: one <video> for each clip
def compare(first, second, motion):
    shown = tuple(any(t.motion == motion for t in scene.things) for scene in (first, second))
    answers = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}
    question = f"<video>\nWhich clip shows something that {motion}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answers[shown]}]
