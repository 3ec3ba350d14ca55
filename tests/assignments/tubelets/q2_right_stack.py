def inflate(weight, depth=2):
    d, c, p, _ = weight.shape
    out = torch.zeros(d, c, depth, p, p)
    for frame in range(depth):
        out[:, :, frame] = weight / depth
    return out.flatten(1)
