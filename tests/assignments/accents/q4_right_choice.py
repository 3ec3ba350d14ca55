import random


def paired_interval(first, second, draws=2000, seed=0):
    rng = random.Random(seed)
    pairs = list(zip(first, second))
    means = []
    for _ in range(draws):
        chosen = rng.choices(pairs, k=len(pairs))
        means.append(sum(b - a for a, b in chosen) / len(pairs))
    means.sort()
    return sum(b - a for a, b in pairs) / len(pairs), means[int(0.025 * draws)], means[int(0.975 * draws)]
