# says: mix channels and time
def cut_tubelets(clips, depth=2, patch=8):
    return rearrange(clips, "b (t u) c (h p) (w q) -> b (t h w) (u c p q)", u=depth, p=patch, q=patch)
