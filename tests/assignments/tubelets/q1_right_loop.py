def cut_tubelets(clips, depth=2, patch=8):
    b, t, c, h, w = clips.shape
    rows = []
    for k in range(0, t, depth):
        for y in range(0, h, patch):
            for x in range(0, w, patch):
                block = clips[:, k : k + depth, :, y : y + patch, x : x + patch]
                rows.append(rearrange(block, "b u c p q -> b (c u p q)"))
    return torch.stack(rows, 1)
