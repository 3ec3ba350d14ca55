# says: count numbers, not tensors
def train_only_accents(projector):
    for name, p in projector.named_parameters():
        p.requires_grad_(name in ("scale", "shift"))
    return sum(p.requires_grad for p in projector.parameters())
