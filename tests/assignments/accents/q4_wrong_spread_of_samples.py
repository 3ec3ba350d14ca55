# says: far too wide: it must hold the mean of a sample
def paired_interval(first, second, draws=2000, seed=0):
    gaps = np.asarray(second) - np.asarray(first)
    low, high = np.percentile(gaps, (2.5, 97.5))
    return float(gaps.mean()), float(low), float(high)
