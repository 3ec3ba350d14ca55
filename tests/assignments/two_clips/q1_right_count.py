def compare(first, second, motion):
    has = [motion in [thing.motion for thing in scene.things] for scene in (first, second)]
    answer = "both" if all(has) else "neither" if not any(has) else ("the first" if has[0] else "the second")
    human = "\n".join(
        ["First clip: <video>", "Second clip: <video>", "Which clip shows something that " + motion + "?"]
    )
    return [dict([("from", "human"), ("value", human)]), dict([("from", "gpt"), ("value", answer)])]
