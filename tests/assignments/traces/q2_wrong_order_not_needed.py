# says: needs_order must be True
def trace_question(scene):
    moving = [thing for thing in scene.things if thing.moves]
    if len(moving) != 1 or len(places_passed(moving[0])) < 2:
        return None
    return Turn(f"Which places does the {name(moving[0])} pass?", ", then ".join(places_passed(moving[0])), "trace")
