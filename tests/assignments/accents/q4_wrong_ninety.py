# says: only 90 %
def paired_interval(first, second, draws=2000, seed=0):
    gaps = np.asarray(second) - np.asarray(first)
    chosen = np.random.default_rng(seed).integers(len(gaps), size=(draws, len(gaps)))
    low, high = np.percentile(gaps[chosen].mean(1), (5, 95))
    return float(gaps.mean()), float(low), float(high)
