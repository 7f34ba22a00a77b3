"""Closed forms of what distillation and forgetting do in linear models.

`spectral` holds what the others share. All but the two that differentiate
networks (`ntk.empirical_ntk`, `deep_linear.train`) is NumPy in float64: the
identities hold to many more digits than float32 has.
"""

from kfkd_jax.theory import deep_linear, hilbert, ntk, ridge, spectral

__all__ = ["deep_linear", "hilbert", "ntk", "ridge", "spectral"]
