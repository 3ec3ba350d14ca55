# says: the mean is over questions
def scene_interval(scores, scenes, draws=2000, seed=0):
    means = np.array([np.mean([s for s, k in zip(scores, scenes) if k == key]) for key in sorted(set(scenes))])
    chosen = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.percentile(means[chosen].mean(1), (2.5, 97.5))
    return float(means.mean()), float(low), float(high)
