# says: frozen, but must learn
def train_only_accents(projector):
    projector.linear1.requires_grad_(False)
    projector.linear2.requires_grad_(False)
    return projector.scale.numel() + projector.shift.numel()
