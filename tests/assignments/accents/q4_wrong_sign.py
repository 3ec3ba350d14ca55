# says: second minus first
def paired_interval(first, second, draws=2000, seed=0):
    gaps = np.asarray(first) - np.asarray(second)
    chosen = np.random.default_rng(seed).integers(len(gaps), size=(draws, len(gaps)))
    low, high = np.percentile(gaps[chosen].mean(1), (2.5, 97.5))
    return float(gaps.mean()), float(low), float(high)
