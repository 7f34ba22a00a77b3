"""Trains and averages the networks of other methods than the teacher's own."""

from __future__ import annotations

from kfkd_jax import methods
from kfkd_jax.run import networks
from kfkd_jax.run.workspace import Workspace


def plans(space: Workspace) -> list[networks.Plan]:
  """Every network that the stage trains."""
  configured = methods.configured(space.config)
  return [plan for method in configured for plan in method.plans(space)]


def artefacts(space: Workspace) -> list[str]:
  """What the stage leaves in the working directory."""
  made = [run for m in methods.configured(space.config) for run in m.made]
  return [f"runs/{run}" for run in [*(p.name for p in plans(space)), *made]]


def cost(space: Workspace, plans: list[networks.Plan]) -> list[str]:
  """What the networks beside the teacher take."""
  count = f"{len(plans)} more network{'s' * (len(plans) > 1)}"
  return [f"{count}: {networks.work(space, plans)}"]


def run(space: Workspace) -> str:
  """Trains what the configured methods plan, and averages what they say."""
  trained = []
  for method in methods.configured(space.config):
    for plan in method.plans(space):
      networks.train(space, plan)
      trained.append(plan.name)
    method.make(space)
  return ", ".join(trained) or "none asked for"
