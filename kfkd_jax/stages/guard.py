"""What took long is not replaced unasked: a refusal, or a place aside."""

from __future__ import annotations

from kfkd_jax import files, processes
from kfkd_jax.run import keeping, networks, provenance, results
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import manifest
from kfkd_jax.stages.registry import KNOWN


def protect(space: Workspace, due, place, say) -> None:
  """Refuses to replace what took long, or sets it aside in `place`.

  Args:
    space: the working directory.
    due: the stages to run that are not up to date.
    place: where to; None to refuse.
    say: what to tell of it with.

  Raises:
    networks.WouldReplaceError: trained networks would be lost; `place` is None.
  """
  if not due:
    return
  difference = processes.on_main(provenance.difference, space)
  if difference:
    processes.on_main(_make_room, space, difference, place, say)
    return
  runs, stages = _replaced(space, due)
  if place is None:
    taught = _taught_anew(space, due)
    if runs or taught:
      processes.on_main(
        _refuse, space, [*dict.fromkeys(runs + taught)],
        [*stages, *(["fuse"] if taught else [])],
      )  # fmt: skip
  elif runs:
    processes.on_main(keeping.set_aside, space, runs, place)
    processes.on_main(say, f"set aside in {place}: {', '.join(runs)}")


def _make_room(space: Workspace, difference, place, say) -> None:
  """Sets everything aside: all of it was made from other data."""
  if place is None:
    raise networks.WouldReplaceError(provenance.refusal(space, difference))
  runs = keeping.runs_with_work(space.path)
  keeping.set_aside(space, runs, place)
  files.write_json(space.path / "manifest.json", {})
  provenance.note(space)
  say(f"set aside in {place}: {', '.join(runs)}")


def _refuse(space: Workspace, runs, stages) -> None:
  raise networks.WouldReplaceError(keeping.refusal(space, runs, stages))


def _replaced(space: Workspace, due) -> tuple[list[str], list[str]]:
  """Runs with work that would be replaced, and the stages that would do so."""
  runs: list[str] = []
  stages: list[str] = []
  for name in due:
    if not processes.on_main(_can_plan, space, name):
      continue
    plans = KNOWN[name].plans(space)
    found = processes.on_main(
      _with_other_work,
      space.path,
      [(p.name, networks.origin(space.config, p)) for p in plans],
    )
    if found:
      runs, stages = runs + found, [*stages, name]
    if found and not KNOWN[name].needs:  # all others learnt from it
      return processes.on_main(keeping.runs_with_work, space.path), stages
  return runs, stages


def _can_plan(space: Workspace, name) -> bool:
  """Whether what a stage's plans read is there."""
  return all(
    manifest.is_as_left(space.path, need)
    for need in ("train", "fuse")
    if need in KNOWN[name].needs
  )


def _with_other_work(workdir, origins) -> list[str]:
  return [
    name
    for name, origin in origins
    if networks.would_be_replaced(results.run_path(workdir, name), origin)
  ]


def _taught_anew(space: Workspace, due) -> list[str]:
  """Runs taught by a fusion that will be chosen in another way."""
  if "fuse" not in due or not processes.on_main(_fuses_anew, space):
    return []
  taught = [
    plan.name
    for name in ("distill", "rivals")
    for plan in KNOWN[name].plans(space)
    if {"weights", "student"} & set(plan.inputs)
  ]
  return processes.on_main(
    lambda: [
      name
      for name in taught
      if results.holds_work(results.run_path(space.path, name))
    ]
  )


def _fuses_anew(space: Workspace) -> bool:
  if not all(
    manifest.is_as_left(space.path, name) for name in ("train", "fuse")
  ):
    return False
  ours = manifest.inputs_of(space.config, "fuse")["config"]
  return manifest.read(space.path)["fuse"]["inputs"]["config"] != ours
