def places_passed(thing, frames=15):
    found = []
    track = thing.track(frames)
    for k in range(frames):
        column = 0 if track.x[k] < 1 / 3 else 1 if track.x[k] < 2 / 3 else 2
        row = 0 if track.y[k] < 1 / 3 else 1 if track.y[k] < 2 / 3 else 2
        place = PLACES[row * 3 + column]
        if not found or found[-1] != place:
            found.append(place)
    return found
