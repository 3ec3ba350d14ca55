# says: depth 3
def cut_tubelets(clips, depth=2, patch=8):
    return rearrange(clips, "b (t u) c (h p) (w q) -> b (t h w) (c u p q)", u=2, p=patch, q=patch)
