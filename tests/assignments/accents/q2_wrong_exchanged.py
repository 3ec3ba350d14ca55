# says: images are 0 and clips 1
def token_modalities(kinds, config, frames=8):
    return torch.tensor(
        [int(k == "image") for k in kinds for _ in range(config.visual_tokens(k, frames))], dtype=torch.int64
    )
