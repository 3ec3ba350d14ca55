def clip_mask(ids):
    ids = ids.tolist()
    clip, number = [], 0
    for before, now in zip([0, *ids], ids):
        number += now == VISUAL and before != VISUAL
        clip.append(number if now == VISUAL else 0)
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for i in range(len(ids)):
        for j in range(i + 1):
            mask[i, j] = clip[i] == 0 or clip[j] == 0 or clip[i] == clip[j]
    return mask
