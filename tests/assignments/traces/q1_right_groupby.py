from itertools import groupby


def places_passed(thing, frames=15):
    track = thing.track(frames)
    cells = [(min(int(3 * y), 2), min(int(3 * x), 2)) for x, y in zip(track.x, track.y)]
    return [PLACES[3 * row + column] for (row, column), _ in groupby(cells)]
