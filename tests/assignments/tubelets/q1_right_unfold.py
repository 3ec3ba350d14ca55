def cut_tubelets(clips, depth=2, patch=8):
    b, t, c, h, w = clips.shape
    pieces = clips.unfold(1, depth, depth).unfold(3, patch, patch).unfold(4, patch, patch)  # b t c h w u p q
    return pieces.movedim(2, 4).reshape(b, (t // depth) * (h // patch) * (w // patch), -1)
