# says: growing and blinking are not moving
def trace_question(scene):
    acting = [thing for thing in scene.things if thing.acts]
    if len(acting) != 1:
        return None
    return Turn(
        f"Which places does the {name(acting[0])} pass?", ", then ".join(places_passed(acting[0])), "trace", True
    )
