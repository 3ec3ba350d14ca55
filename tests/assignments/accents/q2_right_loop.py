def token_modalities(kinds, config, frames=8):
    found = []
    for kind in kinds:
        found += [1 if kind == "video" else 0] * config.visual_tokens(kind, frames)
    return torch.tensor(found, dtype=torch.int64)
