# says: named once for each visit
def places_passed(thing, frames=15):
    track = thing.track(frames)
    return [PLACES[3 * min(int(3 * y), 2) + min(int(3 * x), 2)] for x, y in zip(track.x, track.y)]
