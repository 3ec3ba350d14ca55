def compare(first, second, motion):
    def shows(scene):
        return sum(thing.motion == motion for thing in scene.things) > 0

    answer = ["neither", "the first", "the second", "both"][shows(first) + 2 * shows(second)]
    question = f"First clip: <video>\nSecond clip: <video>\nWhich clip shows something that {motion}?"
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
