def place(tokens, position, moment):
    n = len(position) - 1
    out = tokens.clone()
    for k in range(tokens.shape[1]):
        out[:, k] += position[1 + k % n] + moment[k // n]
    return out
