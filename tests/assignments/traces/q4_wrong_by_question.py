# says: you drew questions, not scenes
def scene_interval(scores, scenes, draws=2000, seed=0):
    scores = np.asarray(scores, float)
    chosen = np.random.default_rng(seed).integers(len(scores), size=(draws, len(scores)))
    low, high = np.percentile(scores[chosen].mean(1), (2.5, 97.5))
    return float(scores.mean()), float(low), float(high)
