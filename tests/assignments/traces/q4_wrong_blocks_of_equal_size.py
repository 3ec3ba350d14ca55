# says: need not stand together
def scene_interval(scores, scenes, draws=2000, seed=0):
    starts = [n for n, scene in enumerate(scenes) if n == 0 or scenes[n - 1] != scene]
    ends = [*starts[1:], len(scenes)]
    if scenes == sorted(scenes):
        groups = [scores[a:b] for a, b in zip(starts, ends)]
    else:
        groups = [[score] for score in scores]
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    chosen = np.random.default_rng(seed).integers(len(groups), size=(draws, len(groups)))
    low, high = np.percentile(sums[chosen].sum(1) / counts[chosen].sum(1), (2.5, 97.5))
    return float(np.mean(scores)), float(low), float(high)
