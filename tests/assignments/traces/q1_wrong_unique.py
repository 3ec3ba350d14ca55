# says: comes back visits the place again
def places_passed(thing, frames=15):
    track = thing.track(frames)
    places = [PLACES[3 * min(int(3 * y), 2) + min(int(3 * x), 2)] for x, y in zip(track.x, track.y)]
    return list(dict.fromkeys(places))
