# says: the same seed must give the same answer
def paired_interval(first, second, draws=2000, seed=0):
    gaps = np.asarray(second, float) - np.asarray(first, float)
    chosen = np.random.default_rng().integers(len(gaps), size=(draws, len(gaps)))
    low, high = np.percentile(gaps[chosen].mean(1), (2.5, 97.5))
    return float(gaps.mean()), float(low) + 1e-9 * np.random.default_rng().random(), float(high)
