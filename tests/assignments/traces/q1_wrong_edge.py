# says: lies in the last column
def places_passed(thing, frames=15):
    track = thing.track(frames)
    places = [PLACES[3 * int(3 * y) + int(3 * x)] for x, y in zip(track.x, track.y)]
    return [p for n, p in enumerate(places) if n == 0 or p != places[n - 1]]
