"""Trains and averages the networks of other methods than the teacher's own."""

from __future__ import annotations

from kfkd_jax import methods
from kfkd_jax.run import networks
from kfkd_jax.run.workspace import Workspace


def plans(space: Workspace) -> list[networks.Plan]:
  """Every network that the stage trains, once if methods share it."""
  configured = methods.configured(space.config)
  found = {p.name: p for method in configured for p in method.plans(space)}
  return [*found.values()]


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
  trained: dict[str, None] = {}  # in order, shared ones once
  for method in methods.configured(space.config):
    for plan in method.plans(space):
      networks.carry_out(space, plan)
      trained[plan.name] = None
    method.make(space)
  return ", ".join(trained) or "none asked for"
