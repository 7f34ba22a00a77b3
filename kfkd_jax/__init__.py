"""Knowledge fusion and distillation over the history of one training run."""

__version__ = "0.1.0"

from kfkd_jax import (
  averaging,
  forgetting,
  fusion,
  history,
  label_noise,
  losses,
  metrics,
  statistics,
)

__all__ = [
  "averaging",
  "forgetting",
  "fusion",
  "history",
  "label_noise",
  "losses",
  "metrics",
  "statistics",
]
