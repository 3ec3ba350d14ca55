# says: one entry for each visual token
def token_modalities(kinds, config, frames=8):
    return torch.tensor([int(kind == "video") for kind in kinds])
