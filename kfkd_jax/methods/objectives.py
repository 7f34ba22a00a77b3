"""Networks trained once, as the teacher is, with another objective."""

from __future__ import annotations

from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs
from kfkd_jax.run import networks, objectives


def _method(name: str) -> Method:
  def plans(config, workdir) -> list[networks.Plan]:
    del workdir
    return [
      networks.Plan(
        name,
        lambda: networks.Lesson(objectives.OBJECTIVES[name](config)),
        inputs=objectives.inputs(config, name),
        changes=objectives.changes(config, name),
      )
    ]

  def ensembles(config, workdir, number) -> list[Ensemble]:
    del config, workdir, number
    return [of_runs(name, [name], 1.0)]

  return Method(ensembles, plans)


OTHER_OBJECTIVES = {
  name: _method(name) for name in objectives.OBJECTIVES if name != "ce"
}
