"""Every method once: slug, printed name, paper, what it needs, its keys.

A new method is a row here, its formula, and the maker of its row of the
comparison. Whatever else must know the methods reads this table: which values
a key may take, what decides a run, what tables call it.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
  """A row of the comparison.

  Attributes:
    slug: in results, keys and the names of runs.
    name: in tables and figures.
    paper: who proposed it; "" where it has no one paper or is ours.
    needs: `asked` if it is made only where `compare.methods` names it; `labels`
      if one network learns it from nothing but the given labels, so that the
      teacher may; `memory` if it remembers what was said of each image, so that
      images are never mixed; `fusion` if a fusion teaches it.
    keys: of the configuration that only such methods read.
  """

  slug: str
  name: str
  paper: str = ""
  needs: tuple[str, ...] = ()
  keys: tuple[str, ...] = ()


_ASKED = ("asked",)
_ALONE = ("asked", "labels")
_REMEMBERS = (*_ALONE, "memory")
_TAUGHT = ("asked", "fusion")
_KF = "Stern, Yaacoby, Weinshall 2025"
_BESIDE_LABELS = ("strategy.teacher", "strategy.label_weight")

# fmt: off
_ROWS = (
  Method("final", "Final network"),
  Method("best_epoch", "Best epoch"),
  Method("early_stopping", "Early stopping", "Prechelt 1998",
         keys=("compare.patience",)),
  Method("horizontal", "Last epochs", "Xie, Xu, Chuang 2013"),
  Method("fixed_jumps", "Evenly spaced epochs", _KF),
  Method("random_epochs", "Random epochs"),
  Method("kf_one_step", "Knowledge Fusion, one step", _KF),
  Method("kf", "Knowledge Fusion", _KF),
  Method("mixture", "Mixture fusion"),
  Method("uniform_soup", "Uniform soup", "Wortsman et al. 2022", _ASKED),
  Method("greedy_soup", "Greedy soup", "Wortsman et al. 2022", _ASKED),
  Method("kf_soup", "Soup of KF's members"),
  Method("ema", "Averaged weights (EMA)", "Polyak, Juditsky 1992"),
  Method("swa", "Averaged weights (SWA)", "Izmailov et al. 2018", _ASKED,
         ("baselines.swa_start", "baselines.swa_rate", "baselines.swa_cycle")),
  Method("snapshot", "Snapshot ensemble", "Huang et al. 2017", _ASKED,
         ("baselines.snapshot_cycles",)),
  Method("fge", "Fast geometric ensemble", "Garipov et al. 2018", _ASKED,
         ("baselines.fge_start", "baselines.fge_cycle", "baselines.fge_rates")),
  Method("independent", "Independent ensemble", "Lakshminarayanan et al. 2017",
         keys=("compare.independent",)),
  Method("independent_equal_budget", "Independent, equal budget",
         needs=_ASKED, keys=("compare.independent",)),
  Method("ce", "Cross entropy", needs=_ALONE),
  Method("gce", "Generalised cross entropy", "Zhang, Sabuncu 2018", _ALONE,
         ("baselines.gce_q",)),
  Method("sce", "Symmetric cross entropy", "Wang et al. 2019", _ALONE,
         ("baselines.sce_weights",)),
  Method("elr", "Early-learning regularisation", "Liu et al. 2020", _REMEMBERS,
         ("baselines.elr_weight", "baselines.elr_decay")),
  Method("label_smoothing", "Label smoothing", "Szegedy et al. 2016", _ALONE,
         ("baselines.label_smoothing",)),
  Method("mixup", "Mixup", "Zhang et al. 2018", _ALONE, ("baselines.mixup",)),
  Method("audit_retrain", "Labels corrected, trained anew", needs=_ASKED,
         keys=("baselines.audit_correct",)),
  Method("audit_retrain_kf", "Labels corrected, its KF", needs=_ASKED,
         keys=("baselines.audit_correct",)),
  Method("audit_retrain_kd", "Labels corrected, its KF distilled", needs=_ASKED,
         keys=("baselines.audit_correct",)),
  Method("kf_kd", "KF, distilled", "Stern, Corn, Weinshall 2025"),
  Method("mixture_kd", "Mixture, distilled"),
  Method("air", "AIR, hard", "Dong et al. 2019", _ALONE,
         ("strategy.air_share",)),
  Method("air_soft", "AIR, soft", "Dong et al. 2019", _ALONE,
         ("strategy.air_share",)),
  Method("air_previous", "AIR, previous epoch", "Dong et al. 2019", _REMEMBERS,
         ("strategy.air_share",)),
  Method("ps_kd", "Past predictions (PS-KD)", "Kim et al. 2021", _REMEMBERS,
         ("strategy.ps_kd_share",)),
  Method("self_adaptive", "Self-adaptive training", "Huang, Zhang, Zhang 2020",
         _REMEMBERS,
         ("strategy.self_adaptive_start", "strategy.self_adaptive_decay")),
  Method("mutual", "Mutual learning", "Zhang et al. 2018", _ASKED),
  Method("online_fusion", "Online fusion", needs=_ASKED),
  Method("online_coverage", "Online, by coverage", "CAFE, 2026", _ASKED,
         ("strategy.coverage_share",)),
  Method("sckd", "Gated distillation (SCKD)", "Zhu, Wang 2021", _TAUGHT,
         (*_BESIDE_LABELS, "strategy.temperature", "strategy.sckd_threshold",
          "strategy.sckd_by_group")),
  Method("dkd", "Decoupled distillation (DKD)", "Zhao et al. 2022", _TAUGHT,
         (*_BESIDE_LABELS, "strategy.temperature", "strategy.dkd_weights")),
  Method("dist", "Correlations (DIST)", "Huang et al. 2022", _TAUGHT,
         (*_BESIDE_LABELS, "strategy.temperature", "strategy.dist_weights")),
  Method("standardized_kd", "Standardised logits", "Sun et al. 2024", _TAUGHT,
         (*_BESIDE_LABELS, "strategy.standardized_weight")),
  Method("relational_kd", "Relations (RKD)", "Park et al. 2019", _TAUGHT,
         (*_BESIDE_LABELS, "strategy.relational_weights")),
  Method("xi_kd", "Beyond the teacher", "Das, Sanghavi 2023", _TAUGHT,
         ("strategy.teacher", "strategy.xi")),
  Method("partial_kd", "Top two classes", "Jeong, Chung 2025", _TAUGHT,
         ("strategy.teacher",)),
  Method("agreement_kd", "Label or teacher, by agreement", needs=_TAUGHT,
         keys=("strategy.teacher",)),
  Method("propagation", "Label propagation", "Iscen et al. 2019", _TAUGHT,
         ("strategy.teacher", "strategy.neighbours",
          "strategy.propagation_decay")),
)
# fmt: on

METHODS = {method.slug: method for method in _ROWS}
FUSIONS = ("kf", "mixture")  # that may teach a student
# Always scored; a terminal's table leaves them out unless asked for all.
MINOR = (
  "early_stopping", "horizontal", "random_epochs", "kf_one_step", "kf_soup",
)  # fmt: skip
ASKED = tuple(m.slug for m in _ROWS if "asked" in m.needs)
OBJECTIVES = tuple(m.slug for m in _ROWS if "labels" in m.needs)
EXPORTABLE = ("final", *FUSIONS, *(f"{fusion}_kd" for fusion in FUSIONS))

_VARIANTS = {"temperature": "tempered", "views": "several views"}


def taught_by(slug: str) -> str | None:
  """The fusion behind a student of any round; None for other methods.

  >>> taught_by("kf_kd"), taught_by("mixture_kd_2"), taught_by("agreement_kd")
  ('kf', 'mixture', None)
  """
  fusion, is_taught, number = slug.partition("_kd")
  plain = not number or number[1:].isdigit()
  return fusion if is_taught and plain and fusion in FUSIONS else None


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
    return f"{METHODS[stem].name}, round {number}"
  if slug in METHODS:
    return METHODS[slug].name
  return slug.replace("_", " ").capitalize()
