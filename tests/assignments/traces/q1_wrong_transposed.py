# says: rows and columns are exchanged
def places_passed(thing, frames=15):
    track = thing.track(frames)
    places = [PLACES[3 * min(int(3 * x), 2) + min(int(3 * y), 2)] for x, y in zip(track.x, track.y)]
    return [p for n, p in enumerate(places) if n == 0 or p != places[n - 1]]
