# says: drew the two lists separately
def paired_interval(first, second, draws=2000, seed=0):
    a, b = np.asarray(first), np.asarray(second)
    rng = np.random.default_rng(seed)
    means = [
        b[rng.integers(len(b), size=len(b))].mean() - a[rng.integers(len(a), size=len(a))].mean() for _ in range(draws)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float((b - a).mean()), float(low), float(high)
