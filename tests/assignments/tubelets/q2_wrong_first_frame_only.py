# says: some frames of a tubelet have no weight
def inflate(weight, depth=2):
    out = torch.zeros(weight.shape[0], weight.shape[1], depth, *weight.shape[2:])
    out[:, :, 0] = weight
    return out.flatten(1)
