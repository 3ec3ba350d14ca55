def train_only_accents(projector):
    count = 0
    for p in projector.parameters():
        p.requires_grad = p is projector.scale or p is projector.shift
        count += p.numel() * p.requires_grad
    return count
