def trace_question(scene):
    if sum(thing.moves for thing in scene.things) != 1:
        return None
    (mover,) = (thing for thing in scene.things if thing.moves)
    first, *others = places_passed(mover, scene.frames)
    answer = first
    for place in others:
        answer += f", then {place}"
    return Turn(f"Which places does the {name(mover)} pass?", answer, "trace", True) if others else None
