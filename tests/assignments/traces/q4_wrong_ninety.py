# says: only 90 %
def scene_interval(scores, scenes, draws=2000, seed=0):
    scores, (_, which) = np.asarray(scores, float), np.unique(scenes, return_inverse=True)
    sums, counts = np.bincount(which, scores), np.bincount(which)
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.percentile(sums[chosen].sum(1) / counts[chosen].sum(1), (5, 95))
    return float(scores.mean()), float(low), float(high)
