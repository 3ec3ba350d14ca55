def trace_question(scene):
    movers = [thing for thing in scene.things if thing.motion.startswith("moves")]
    places = places_passed(movers[0], scene.frames) if len(movers) == 1 else []
    if len(places) > 1:
        question = "Which places does the " + movers[0].colour + " " + movers[0].shape + " pass?"
        return Turn(question=question, answer=", then ".join(places), type="trace", needs_order=True)
