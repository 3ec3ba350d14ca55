# says: look at all of them
def compare(first, second, motion):
    shown = tuple(scene.things[0].motion == motion for scene in (first, second))
    answers = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}
    question = f"First clip: <video>\nSecond clip: <video>\nWhich clip shows something that {motion}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answers[shown]}]
