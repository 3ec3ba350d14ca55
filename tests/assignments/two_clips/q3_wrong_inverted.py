# says: says the opposite
def clip_mask(ids):
    visual = ids == VISUAL
    passage = (~visual).cumsum(0)
    allowed = ~(visual[:, None] & visual[None]) | (passage[:, None] == passage[None])
    return ~(allowed & torch.ones(len(ids), len(ids), dtype=torch.bool).tril())
