def clip_mask(ids):
    visual = ids == VISUAL
    passage = (~visual).cumsum(0)
    together = passage[:, None] == passage[None, :]
    both = visual[:, None] & visual[None, :]
    causal = torch.arange(len(ids))[:, None] >= torch.arange(len(ids))[None, :]
    return causal & (~both | together)
