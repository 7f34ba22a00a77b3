"""Trains the network whose history everything else is about."""

from __future__ import annotations

from etils import epath

from kfkd_jax import catalogue, processes
from kfkd_jax.data import splits
from kfkd_jax.run import (
  build,
  forecast,
  networks,
  results,
  students,
  tasks,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import distill


def artefacts(space: Workspace) -> list[str]:
  """What the stage leaves in the working directory."""
  names = results.run_names(space.config, workspace.TEACHER)
  return ["noise.npz", *(f"runs/{name}" for name in names)]


def plans(space: Workspace) -> list[networks.Plan]:
  """The one network that the stage trains."""
  return [
    networks.Plan(
      workspace.TEACHER,
      lambda: networks.supervised(space.config),
      inputs={},
      keep_history=True,
    )
  ]


def cost(space: Workspace, plans: list[networks.Plan]) -> list[str]:
  """What the teacher takes, and a warning of students that take far more."""
  del plans
  size = build.network_size(space)
  epochs = f"{space.config.train.epochs} epochs"
  line = f"teacher: {forecast.described(space.config, size)}, {epochs}"
  if space.config.train.objective != "ce":
    line += f", {catalogue.method_name(space.config.train.objective)}"
  return [line, *distill.warnings(space)]


def run(space: Workspace) -> str:
  """Writes `noise.npz` and `runs/teacher/`; returns a line to print."""
  task = space.task
  processes.say(tasks.first_line(space.config, task))
  num_select = len(task.folds[0].select_rows)
  if len(task.given) < num_select:
    processes.say(
      f"warning: {len(task.given)} examples train and {num_select} select; a "
      "smaller selection.num leaves more to train on"
    )
  if space.config.distill.inputs != "train":
    students.extra_images(space)  # what is missing shows before training
  ledger = space.path / "noise.npz"
  processes.on_main(splits.write_ledger, ledger, task.ledger)
  for plan in plans(space):
    networks.carry_out(space, plan)
  return processes.on_main(_summary, space.path, task)


def _summary(workdir: epath.Path, task: tasks.Task) -> str:
  store = results.predictions(workdir, workspace.TEACHER, "test")
  return (
    f"{len(store)} checkpoints, noise rate "
    f"{task.ledger.realised_rate('train'):.3f}, final test accuracy "
    f"{results.final_accuracy(workdir, workspace.TEACHER):.3f}"
  )
