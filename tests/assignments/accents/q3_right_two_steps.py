def train_only_accents(projector):
    projector.requires_grad_(False)
    projector.scale.requires_grad_(True)
    projector.shift.requires_grad_(True)
    return projector.scale.numel() + projector.shift.numel()
