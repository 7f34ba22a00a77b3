"""Distils each fusion into one network, of the original size or smaller.

A student may teach the next one, for some rounds, and students may see more
images than their teachers had labels for.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kfkd_jax import config as config_lib
from kfkd_jax import (
  files,
  fusion,
  history,
  losses,
  processes,
)
from kfkd_jax.report import verdict
from kfkd_jax.run import (
  build,
  forecast,
  networks,
  objectives,
  results,
  students,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import compare
from kfkd_jax.training import objective, step


def artefacts(space: Workspace) -> list[str]:
  """What the stage may leave in the working directory."""
  return [
    f"runs/{name}"
    for teacher in space.config.distill.teachers
    for round_ in range(1, space.config.distill.rounds + 1)
    for name in results.run_names(
      space.config, students.student_name(teacher, round_)
    )
  ]


def plans(space: Workspace) -> list[networks.Plan]:
  """Every student there may be, round by round."""
  return [
    plan
    for teacher in space.config.distill.teachers
    for plan in _rounds(space, teacher)
  ]


def _rounds(space: Workspace, teacher) -> list[networks.Plan]:
  """A student of the fusion, a student of that one, and so on."""
  found: list[networks.Plan] = []
  for round_ in range(1, space.config.distill.rounds + 1):
    if not found:
      run, weights = workspace.TEACHER, results.weights_of(space.path, teacher)
      taught_by = {"weights": files.digest(weights.tobytes())}
    else:
      run, weights = found[-1].name, np.ones(1, np.float32)
      taught_by = {"student": networks.origin(space.config, found[-1])}
    plan = networks.Plan(
      students.student_name(teacher, round_),
      functools.partial(_lesson, space, run, weights),
      inputs={
        "distill": config_lib.deciding(space.config, "lesson"),
        **taught_by,
      },
      changes=students.student_changes(space.config),
    )
    found.append(plan)
  return found


_LARGE = 10  # times the teacher's operations


def cost(space: Workspace, plans: list[networks.Plan]) -> list[str]:
  """What the students take, and a warning where that is far more."""
  student = space.changed(students.student_changes(space.config))
  size = build.network_size(student)
  count = f"{len(plans)} student{'s' * (len(plans) > 1)}"
  described = forecast.described(student.config, size)
  line = f"{count}: {described}, {networks.work(space, plans)}"
  return [line, *warnings(space)]


def warnings(space: Workspace) -> list[str]:
  """A line where a student takes many times its teacher's operations."""
  ratio = (
    students.student_size(space).compute if space.config.distill.teachers else 0
  )
  if ratio <= _LARGE:
    return []
  name = space.config.distill.model or space.config.model.name
  return [
    f"WARNING: a student {name} takes {forecast.times(ratio)} its teacher's "
    "operations on every image; distill.model and distill.width decide it"
  ]


def run(space: Workspace) -> str:
  """Trains `runs/<fusion>_kd/` and its successors for every teacher."""
  accuracies, lines = [], []
  for teacher in space.config.distill.teachers:
    planned = _rounds(space, teacher)
    # `students` ends where a round no longer helps, before the plans do.
    for name, plan in zip(
      students.students(space, teacher), planned, strict=False
    ):
      networks.carry_out(space, plan)
      accuracy = processes.on_main(results.final_accuracy, space.path, name)
      accuracies.append(f"{name} {accuracy:.3f}")
      lines += processes.on_main(_warnings, space, name, teacher)
  said = f"test accuracy: {', '.join(accuracies) or 'no teachers configured'}"
  return "\n".join([said, *(f"WARNING: {line}" for line in lines)])


def _warnings(space: Workspace, name, teacher) -> list[str]:
  """That a student is clearly below the network that its fusion is of."""
  store = results.predictions(space.path, workspace.TEACHER, "test")
  student = results.predictions(space.path, name, "test")
  fused = fusion.fuse(store, results.weights_of(space.path, teacher))
  probs = {
    "final": store[len(store) - 1],
    teacher: np.asarray(fused),
    name: student[len(student) - 1],
  }
  here = space.task.folds[0].test_rows
  rows = compare.score(
    space.config,
    [compare.Entry(method, p[here], "", 1, 1.0) for method, p in probs.items()],
    store.labels[here],
    split="test",
  )
  return list(verdict.warn(rows, methods=[name]))


def _lesson(space: Workspace, run, weights) -> networks.Lesson:
  options: dict[str, Any] = {
    "alpha": space.config.distill.alpha,
    "temperature": space.config.distill.temperature,
  }
  if space.config.distill.label_loss != "ce":
    own = space.changed(students.student_changes(space.config)).config
    make = objectives.OBJECTIVES[space.config.distill.label_loss]
    options["labels"] = make(own)  # some go by the student's epochs
  stacked, weights = results.read_members(space, weights, name=run)
  teaching = results.configured_as(space, run)

  def taught(images):
    probs = students.teacher_probs(teaching, stacked, weights, images)
    hard = space.config.distill.hard
    return np.asarray(losses.hard_targets(probs)) if hard else probs

  examples = students.student_examples(space, taught)
  if space.config.distill.targets == "cached":
    examples["teacher_probs"] = taught(examples["image"])
    return networks.Lesson(
      objective.cached_distillation(**options), extra=examples
    )
  module = build.make_module(teaching)
  live = objective.live_distillation(
    step.eval_apply(module), hard=space.config.distill.hard, **options
  )
  members = history.pad_members(
    stacked, weights, space.config.runtime.ensemble_axis
  )
  frozen = dict(zip(("stacked", "weights"), members, strict=True))
  return networks.Lesson(live, extra=examples, frozen=frozen)
