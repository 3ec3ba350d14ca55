def token_modalities(kinds, config, frames=8):
    pieces = [torch.full((config.visual_tokens(k, frames),), int(k == "video")) for k in kinds]
    return torch.cat([torch.zeros(0, dtype=torch.long), *pieces])
