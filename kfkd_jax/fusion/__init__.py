"""How to fuse a training history: rules that choose weights over checkpoints.

An ensemble over the checkpoints of one run is a vector of convex weights, so
every rule here returns `weights[C]` and `fuse` is all that is left to do with
them. Rules that look at predictions take probabilities of a selection split
as `probs[C, N, K]`, in any of the forms that `kfkd_jax.stacks` reads.
"""

from kfkd_jax.fusion.knowledge import (
  BestEpsilon,
  Fusion,
  best_epsilon_exact,
  equivalent_weights,
  knowledge_fusion,
  right_counts,
)
from kfkd_jax.fusion.mixture import (
  label_likelihoods,
  mixture_fusion,
  mixture_gap,
  mixture_weights,
)
from kfkd_jax.fusion.rules import (
  Stopped,
  best_checkpoint,
  coverage,
  early_stopping,
  final_only,
  fixed_jumps,
  fuse,
  horizontal,
  random_checkpoints,
)

__all__ = [
  "BestEpsilon",
  "Fusion",
  "Stopped",
  "best_checkpoint",
  "best_epsilon_exact",
  "coverage",
  "early_stopping",
  "equivalent_weights",
  "final_only",
  "fixed_jumps",
  "fuse",
  "horizontal",
  "knowledge_fusion",
  "label_likelihoods",
  "mixture_fusion",
  "mixture_gap",
  "mixture_weights",
  "random_checkpoints",
  "right_counts",
]
