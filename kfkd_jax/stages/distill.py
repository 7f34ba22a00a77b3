"""Distils each fusion into one network, of the original size or smaller.

A student may teach the next one, for some rounds, and students may see more
images than their teachers had labels for.
"""

from __future__ import annotations

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import (
  files,
  history,
  losses,
  processes,
)
from kfkd_jax.run import (
  build,
  forecast,
  networks,
  results,
  students,
  tasks,
  workspace,
)
from kfkd_jax.training import objective, step


def artefacts(config: ml_collections.ConfigDict) -> list[str]:
  """What the stage may leave in the working directory."""
  return [
    f"runs/{name}"
    for teacher in config.distill.teachers
    for number in range(1, config.distill.rounds + 1)
    for name in results.run_names(
      config, students.student_name(teacher, number)
    )
  ]


def plans(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> list[networks.Plan]:
  """Every student there may be, round by round."""
  return [
    plan
    for teacher in config.distill.teachers
    for plan in _rounds(config, workdir, teacher)
  ]


def _rounds(config, workdir, teacher) -> list[networks.Plan]:
  found: list[networks.Plan] = []
  for number in range(1, config.distill.rounds + 1):
    name = students.student_name(teacher, number)
    before = found[-1] if found else None
    found.append(_plan(config, workdir, name, teacher, before))
  return found


_LARGE = 10  # times the teacher's operations


def cost(
  config: ml_collections.ConfigDict, plans: list[networks.Plan]
) -> list[str]:
  """What the students take, and a warning where that is far more."""
  student = config_lib.changed(config, students.student_changes(config))
  size = build.network_size(student, tasks.load_task(config))
  count = f"{len(plans)} student{'s' * (len(plans) > 1)}"
  described = forecast.described(student, size)
  line = f"{count}: {described}, {networks.work(config, plans)}"
  return [line, *warnings(config)]


def warnings(config: ml_collections.ConfigDict) -> list[str]:
  """A line where a student takes many times its teacher's operations."""
  ratio = (
    students.student_size(config).compute if config.distill.teachers else 0
  )
  if ratio <= _LARGE:
    return []
  name = config.distill.model or config.model.name
  return [
    f"WARNING: a student {name} takes {forecast.times(ratio)} its teacher's "
    "operations on every image; distill.model and distill.width decide it"
  ]


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Trains `runs/<fusion>_kd/` and its successors for every teacher."""
  accuracies = []
  for teacher in config.distill.teachers:
    planned = _rounds(config, workdir, teacher)
    for name, plan in zip(
      students.students(config, workdir, teacher), planned, strict=False
    ):
      networks.train(config, workdir, plan)
      accuracy = processes.on_main(_accuracy, workdir, name)
      accuracies.append(f"{name} {accuracy:.3f}")
  return f"test accuracy: {', '.join(accuracies) or 'no teachers configured'}"


def _accuracy(workdir, name) -> float:
  store = results.predictions(workdir, name, "test")
  return float(np.mean(store[len(store) - 1].argmax(-1) == store.labels))


def _plan(config, workdir, name, teacher, before) -> networks.Plan:
  """A student of the fusion, or of the student `before`."""
  if before is None:
    run, weights = workspace.TEACHER, results.weights_of(workdir, teacher)
    taught_by = {"weights": files.digest(weights.tobytes())}
  else:
    run, weights = before.name, np.ones(1, np.float32)
    taught_by = {"student": networks.origin(config, before)}
  return networks.Plan(
    name,
    lambda: _lesson(config, workdir, run, weights),
    inputs={
      "distill": config_lib.deciding(config, "lesson"),
      **taught_by,
    },
    changes=students.student_changes(config),
  )


def _lesson(config, workdir, run, weights) -> networks.Lesson:
  options = {
    "alpha": config.distill.alpha,
    "temperature": config.distill.temperature,
  }
  stacked, weights = results.read_members(config, workdir, weights, name=run)
  teaching = results.configured_as(config, workdir, run)

  def taught(images):
    probs = students.teacher_probs(teaching, stacked, weights, images)
    hard = config.distill.hard
    return np.asarray(losses.hard_targets(probs)) if hard else probs

  examples = students.student_examples(config, taught)
  if config.distill.targets == "cached":
    examples["teacher_probs"] = taught(examples["image"])
    return networks.Lesson(
      objective.cached_distillation(**options), extra=examples
    )
  module = build.make_module(teaching, tasks.load_task(config))
  live = objective.live_distillation(
    step.eval_apply(module), hard=config.distill.hard, **options
  )
  members = history.pad_members(stacked, weights, config.runtime.ensemble_axis)
  frozen = dict(zip(("stacked", "weights"), members, strict=True))
  return networks.Lesson(live, extra=examples, frozen=frozen)
