# says: halves are exchanged
def inflate_with_motion(weight):
    out = (weight / 2)[:, :, None].repeat(1, 1, 2, 1, 1)
    out[: len(weight) // 2, :, 0] *= -1
    return out.flatten(1)
