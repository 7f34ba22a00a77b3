"""Every method of the comparison, as weights over checkpoints of some runs.

`ALWAYS` are in every comparison; `OPTIONAL` are trained and scored where
`compare.methods` names them.
"""

from __future__ import annotations

import ml_collections

from kfkd_jax.methods import (
  audited,
  fusions,
  mutual,
  objectives,
  online,
  schedules,
  several,
  soups,
  strategies,
  students,
)
from kfkd_jax.methods.ensemble import Ensemble as Ensemble
from kfkd_jax.methods.ensemble import Method
from kfkd_jax.methods.ensemble import Source as Source
from kfkd_jax.methods.ensemble import predict as predict

ALWAYS: tuple[Method, ...] = (
  fusions.HISTORY,
  soups.KF_SOUP,
  schedules.EMA,
  several.INDEPENDENT,
  students.STUDENTS,
)
OPTIONAL: dict[str, Method] = {
  "uniform_soup": soups.UNIFORM_SOUP,
  "greedy_soup": soups.GREEDY_SOUP,
  "swa": schedules.SWA,
  "snapshot": schedules.SNAPSHOT,
  "fge": schedules.FGE,
  "independent_equal_budget": several.EQUAL_BUDGET,
  **objectives.BY_OBJECTIVE,
  **audited.AUDITED,
  "mutual": mutual.MUTUAL,
  **strategies.TAUGHT,
  **online.ONLINE,
}


def configured(config: ml_collections.ConfigDict) -> list[Method]:
  """The methods of a comparison, in the order of its table."""
  return [*ALWAYS, *(OPTIONAL[name] for name in config.compare.methods)]
