# says: time first, then rows, then columns
def cut_tubelets(clips, depth=2, patch=8):
    return rearrange(clips, "b (t u) c (h p) (w q) -> b (h w t) (c u p q)", u=depth, p=patch, q=patch)
