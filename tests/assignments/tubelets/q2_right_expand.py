def inflate(weight, depth=2):
    return (weight[:, :, None].expand(-1, -1, depth, -1, -1) / depth).reshape(len(weight), -1)
