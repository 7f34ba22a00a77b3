"""What the methods are called in tables, figures and cards."""

from __future__ import annotations

METHODS = {
  "final": "Final network",
  "best_epoch": "Best epoch",
  "early_stopping": "Early stopping",
  "horizontal": "Last epochs",
  "fixed_jumps": "Evenly spaced epochs",
  "random_epochs": "Random epochs",
  "kf_one_step": "Knowledge Fusion, one step",
  "kf": "Knowledge Fusion",
  "mixture": "Mixture fusion",
  "uniform_soup": "Uniform soup",
  "greedy_soup": "Greedy soup",
  "kf_soup": "Soup of KF's members",
  "ema": "Averaged weights (EMA)",
  "swa": "Averaged weights (SWA)",
  "snapshot": "Snapshot ensemble",
  "fge": "Fast geometric ensemble",
  "independent": "Independent ensemble",
  "independent_equal_budget": "Independent, equal budget",
  "gce": "Generalised cross entropy",
  "sce": "Symmetric cross entropy",
  "elr": "Early-learning regularisation",
  "kf_kd": "KF, distilled",
  "mixture_kd": "Mixture, distilled",
  "air": "AIR, hard",
  "air_soft": "AIR, soft",
  "air_previous": "AIR, previous epoch",
  "ps_kd": "Past predictions (PS-KD)",
  "self_adaptive": "Self-adaptive training",
  "mutual": "Mutual learning",
  "online_fusion": "Online fusion",
  "sckd": "Gated distillation (SCKD)",
  "dkd": "Decoupled distillation (DKD)",
  "dist": "Correlations (DIST)",
  "standardized_kd": "Standardised logits",
  "relational_kd": "Relations (RKD)",
  "xi_kd": "Beyond the teacher",
  "partial_kd": "Top two classes",
  "agreement_kd": "Label or teacher, by agreement",
  "propagation": "Label propagation",
}

_VARIANTS = {"temperature": "tempered", "views": "several views"}


def method_name(slug: str) -> str:
  """What a method is called in tables and figures.

  >>> method_name("kf_kd"), method_name("my_own_rule")
  ('KF, distilled', 'My own rule')
  >>> method_name("kf_kd_2")
  'KF, distilled, round 2'
  >>> method_name("kf_kd+temperature")
  'KF, distilled, tempered'
  """
  plain, _, variant = slug.partition("+")
  if variant in _VARIANTS:
    return f"{method_name(plain)}, {_VARIANTS[variant]}"
  stem, _, number = slug.rpartition("_")
  if stem in METHODS and number.isdigit():
    return f"{METHODS[stem]}, round {number}"
  return METHODS.get(slug, slug.replace("_", " ").capitalize())
