"""Questions that take many runs: sweeps, studies, checks, benchmarks."""
