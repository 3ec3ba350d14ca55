def scene_interval(scores, scenes, draws=2000, seed=0):
    keys = sorted(set(scenes))
    sums = np.array([sum(s for s, k in zip(scores, scenes) if k == key) for key in keys])
    counts = np.array([sum(k == key for k in scenes) for key in keys])
    times = np.random.default_rng(seed).multinomial(len(keys), [1 / len(keys)] * len(keys), size=draws)
    low, high = np.percentile(times @ sums / (times @ counts), (2.5, 97.5))
    return sum(scores) / len(scores), float(low), float(high)
