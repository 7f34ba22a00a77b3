"""Networks trained once, as the teacher is, each with an objective.

The one that the teacher learns is the teacher's own, trained already.
"""

from __future__ import annotations

from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, on_all_folds
from kfkd_jax.run import networks, objectives, workspace
from kfkd_jax.run.workspace import Workspace


def _method(name: str) -> Method:
  def plans(space: Workspace) -> list[networks.Plan]:
    config = space.config
    if name == config.train.objective:
      return []
    return [
      networks.Plan(
        name,
        lambda: networks.Lesson(objectives.OBJECTIVES[name](config)),
        inputs=objectives.inputs(config, name),
        changes=objectives.changes(config, name),
      )
    ]

  def ensembles(space: Workspace) -> list[Ensemble]:
    is_teacher = name == space.config.train.objective
    return [of_runs(name, [workspace.TEACHER if is_teacher else name], 1.0)]

  return Method(on_all_folds(ensembles), plans)


BY_OBJECTIVE = {name: _method(name) for name in objectives.OBJECTIVES}
