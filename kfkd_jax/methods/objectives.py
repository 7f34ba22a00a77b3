"""Networks trained once, as the teacher is, with another objective."""

from __future__ import annotations

from kfkd_jax.methods.ensemble import Method, of_runs
from kfkd_jax.run import networks, objectives
from kfkd_jax.run.workspace import Workspace


def _method(name: str) -> Method:
  def plans(space: Workspace) -> list[networks.Plan]:
    config = space.config
    return [
      networks.Plan(
        name,
        lambda: networks.Lesson(objectives.OBJECTIVES[name](config)),
        inputs=objectives.inputs(config, name),
        changes=objectives.changes(config, name),
      )
    ]

  return Method(lambda space, fold: [of_runs(name, [name], 1.0)], plans)


OTHER_OBJECTIVES = {
  name: _method(name) for name in objectives.OBJECTIVES if name != "ce"
}
