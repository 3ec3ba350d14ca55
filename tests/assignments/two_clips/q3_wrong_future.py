# says: the future is visible
def clip_mask(ids):
    visual = ids == VISUAL
    passage = (~visual).cumsum(0)
    return ~(visual[:, None] & visual[None]) | (passage[:, None] == passage[None])
