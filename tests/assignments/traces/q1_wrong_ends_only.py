# says: look at every frame
def places_passed(thing, frames=15):
    track = thing.track(frames)
    places = [PLACES[3 * min(int(3 * track.y[k]), 2) + min(int(3 * track.x[k]), 2)] for k in (0, -1)]
    return places if places[0] != places[1] else places[:1]
