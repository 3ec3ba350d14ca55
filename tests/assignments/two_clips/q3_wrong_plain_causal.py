# says: one clip still sees another
def clip_mask(ids):
    return torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
