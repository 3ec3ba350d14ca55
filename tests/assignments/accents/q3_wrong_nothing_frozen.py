# says: still learning: linear1
def train_only_accents(projector):
    return projector.scale.numel() + projector.shift.numel()
