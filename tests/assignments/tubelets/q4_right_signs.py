def inflate_with_motion(weight):
    d, c, p, q = weight.shape
    out = (weight / 2)[:, :, None].repeat(1, 1, 2, 1, 1)
    out[d // 2 :, :, 0] *= -1
    return out.reshape(d, -1)
