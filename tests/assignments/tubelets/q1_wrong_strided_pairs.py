# says: must be neighbours
def cut_tubelets(clips, depth=2, patch=8):
    return rearrange(clips, "b (u t) c (h p) (w q) -> b (t h w) (c u p q)", u=depth, p=patch, q=patch)
