def inflate_with_motion(weight):
    half = len(weight) // 2
    first, second = weight / 2, weight.clone() / 2
    first = torch.cat([first[:half], -first[half:]])
    return torch.stack([first, second], dim=2).flatten(1)
