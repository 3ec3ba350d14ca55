def scene_interval(scores, scenes, draws=2000, seed=0):
    groups = {}
    for score, scene in zip(scores, scenes):
        groups.setdefault(scene, []).append(score)
    groups = [np.array(g, float) for g in groups.values()]
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        chosen = rng.integers(len(groups), size=len(groups))
        means.append(sums[chosen].sum() / counts[chosen].sum())
    return float(np.mean(scores)), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
