# says: text must see everything before it
def clip_mask(ids):
    visual = ids == VISUAL
    passage = (~visual).cumsum(0)
    same_clip = visual[:, None] & visual[None] & (passage[:, None] == passage[None])
    text = ~visual[:, None] & ~visual[None]
    return (same_clip | text) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
