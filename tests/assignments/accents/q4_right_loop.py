def paired_interval(first, second, draws=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64)
    means = [gaps[torch.randint(len(gaps), (len(gaps),), generator=generator)].mean().item() for _ in range(draws)]
    return gaps.mean().item(), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
