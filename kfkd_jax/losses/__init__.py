"""Losses and targets per example; the caller takes the mean. In float32.

`basic` has what every student needs, `targets` the mixtures of labels and
predictions that strategies learn from, `relations` the losses that compare
more than single probabilities. Letters: B batch, K classes, F features; where
only the last axis matters, any leading axes do in place of B, none too.
"""

from kfkd_jax.losses.basic import (
  cross_entropy,
  distillation,
  early_learning,
  generalised_cross_entropy,
  hard_targets,
  symmetric_cross_entropy,
  temper,
)
from kfkd_jax.losses.relations import (
  correlation_distance,
  decoupled_distillation,
  relational_angles,
  relational_distances,
  standardized_distillation,
)
from kfkd_jax.losses.targets import (
  agreement_targets,
  as_probs,
  blended_targets,
  extrapolated_targets,
  partial_targets,
)

__all__ = [
  "agreement_targets",
  "as_probs",
  "blended_targets",
  "correlation_distance",
  "cross_entropy",
  "decoupled_distillation",
  "distillation",
  "early_learning",
  "extrapolated_targets",
  "generalised_cross_entropy",
  "hard_targets",
  "partial_targets",
  "relational_angles",
  "relational_distances",
  "standardized_distillation",
  "symmetric_cross_entropy",
  "temper",
]
