"""The pipeline: train, diagnose, fuse, distil, compare, report, export.

A stage is `run(config, workdir) -> str`: it reads files, writes files and
returns what to print. `manifest.json` notes for each what it was made from;
a stage runs again only if that changed or its artefacts are gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

import kfkd_jax
from kfkd_jax import config as config_lib
from kfkd_jax import files, lock, processes
from kfkd_jax.export import models as export
from kfkd_jax.run import keeping, networks, provenance, results, seals
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import compare, diagnose, distill, fuse, train


def _report(space: Workspace) -> str:
  from kfkd_jax.report import run_page as report

  return report.run(space)


class Stage(NamedTuple):
  """A step of the pipeline and what it depends on.

  Attributes:
    run: does the work, on every process; with `alone` on the main one.
    needs: stages whose artefacts it reads.
    artefacts: what it leaves in the working directory, by configuration: files,
      folders of runs, and folders with `SHA256SUMS`.
    plans: the networks that it trains.
    cost: of those that are not trained yet, to be said before.
  """

  run: Callable[[ml_collections.ConfigDict, epath.Path], str]
  needs: tuple[str, ...]
  artefacts: Callable[[ml_collections.ConfigDict], Sequence[str]]
  alone: bool = False
  plans: Callable[
    [ml_collections.ConfigDict, epath.Path], list[networks.Plan]
  ] = lambda config, workdir: []
  cost: Callable[
    [ml_collections.ConfigDict, list[networks.Plan]], list[str]
  ] = lambda config, plans: []


STAGES: dict[str, Stage] = {
  "train": Stage(
    train.run,
    needs=(),
    artefacts=train.artefacts,
    plans=train.plans,
    cost=train.cost,
  ),
  "diagnose": Stage(
    diagnose.run,
    needs=("train",),
    artefacts=lambda config: ("diagnosis.json",),
    alone=True,
  ),
  "fuse": Stage(
    fuse.run,
    needs=("train",),
    artefacts=lambda config: ("fusion.json",),
    alone=True,
  ),
  "distill": Stage(
    distill.run,
    needs=("train", "fuse"),
    artefacts=distill.artefacts,
    plans=distill.plans,
    cost=distill.cost,
  ),
  "compare": Stage(
    compare.run,
    needs=("train", "fuse", "distill"),
    artefacts=lambda config: ("results.jsonl", "hits.npz"),
    plans=compare.plans,
    cost=compare.cost,
  ),
  "report": Stage(
    _report,
    needs=("train", "diagnose", "fuse", "distill", "compare"),
    artefacts=lambda config: ("report",),
    alone=True,
  ),
}

# Stages that only their own command runs.
ON_REQUEST: dict[str, Stage] = {
  "export": Stage(
    export.run,
    needs=("train", "fuse", "distill", "compare"),
    artefacts=lambda config: ("export",),
  ),
}
_KNOWN = {**STAGES, **ON_REQUEST}


class MissingStageError(ValueError):
  """A stage was asked for whose predecessors have not run."""


def inputs_of(config: ml_collections.ConfigDict, name: str) -> dict[str, str]:
  """Digests of all that decides a stage's outcome, by where it comes from."""
  stage = _KNOWN[name]
  return {
    "version": kfkd_jax.__version__,
    "config": files.digest(config_lib.deciding(config, name)),
    **{need: files.digest(inputs_of(config, need)) for need in stage.needs},
  }


def is_up_to_date(
  space: Workspace, name: str
) -> bool:
  """Whether a stage finished from these inputs and left what is there now."""
  ran = _note_of(space, name) is not None
  return ran and not _spoilt(space, name)


def _note_of(space: Workspace, name) -> dict[str, Any] | None:
  """What is noted of a stage that finished from these inputs."""
  note = _manifest(space.path).get(name)
  same = note is not None and note["inputs"] == inputs_of(space.config, name)
  return note if same else None


def _spoilt(space: Workspace, name) -> list[str]:
  """Artefacts of a finished stage that are not as it left them."""
  note = _note_of(space, name)
  if note is None:
    return []
  # As noted, since earlier versions sealed other parts of a folder.
  noted = note["outputs"] or dict.fromkeys(_KNOWN[name].artefacts(space.config))
  return [
    seals.culprit(artefact, space.path / artefact)
    for artefact, seal in noted.items()
    if seals.seal(space.path / artefact) != seal
  ]


def _seals(space: Workspace, name) -> dict[str, str]:
  artefacts = _KNOWN[name].artefacts(space.config)
  return {artefact: seals.seal(space.path / artefact) for artefact in artefacts}


def run_stage(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  name: str,
  say: Callable[[str], None] = print,
  *,
  redo: bool = False,
) -> bool:
  """Runs one stage unless it is up to date; returns whether it ran.

  Args:
    config: the configuration.
    workdir: the working directory.
    name: of the stage.
    say: what to tell of it with.
    redo: set trained networks aside that were made from something else.

  Raises:
    lock.LockedError: another program is at work in `workdir`.
    networks.WouldReplaceError: such networks are there, without `redo`.
  """
  workdir = epath.Path(workdir)
  with held(workdir):
    place = keeping.new_place(workdir) if redo else None
    return _run_stage(Workspace(config, workdir), name, say, place)


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
  """The lock of a working directory, which the main process takes for all.

  Raises:
    lock.LockedError: another program is at work in `workdir`.
  """
  path = workdir / lock.NAME
  with contextlib.ExitStack() as stack:

    def take() -> str:
      if not files.exists(workdir):
        stack.callback(_remove_if_empty, workdir)
      stack.enter_context(lock.held(workdir))
      return path.read_text() if files.exists(path) else ""  # none in a bucket

    holder = processes.on_main(take)
    _check_shared(path, holder)
    yield


def _remove_if_empty(workdir: epath.Path) -> None:
  """A run that was refused leaves nothing."""
  if files.is_folder(workdir) and not any(workdir.iterdir()):
    workdir.rmdir()


_SHARED_SECONDS = 40  # a shared file system may be as late


def _check_shared(path: epath.Path, content: str) -> None:
  """Refuses a working directory that is another one on every host."""

  def is_missing() -> bool:
    return bool(content) and not (
      files.exists(path) and path.read_text() == content
    )

  # Together every second: processes that wait for others longer may give up.
  for _ in range(_SHARED_SECONDS):
    if not processes.anywhere(is_missing()):
      return
    time.sleep(1)
  raise ValueError(
    f"{path.parent} is not the same for all processes; give --workdir on a "
    "file system that their hosts share, or in a bucket"
  )


def _run_stage(space: Workspace, name, say, place) -> bool:
  stage = _KNOWN[name]
  if not processes.on_main(_is_due, space, name, say):
    return False
  _protect(space, [name], place, say)
  plans = stage.plans(space.config, space.path)
  processes.on_main(_begin, space, name, plans, say)
  if stage.alone:
    result = processes.on_main(stage.run, space.config, space.path)
  else:
    result = stage.run(space.config, space.path)
  processes.on_main(_end, space, name, result, say)
  return True


def _protect(space: Workspace, names, place, say) -> None:
  """Refuses to replace what took long, or sets it aside in `place`.

  Raises:
    networks.WouldReplaceError: trained networks would be lost; `place` is None.
  """
  if all(processes.on_main(is_up_to_date, space, n) for n in names):
    return
  difference = processes.on_main(
    provenance.difference, space
  )
  if difference:
    processes.on_main(_make_room, space, difference, place, say)
    return
  runs, stages = _replaced(space, names)
  if place is None:
    taught = _taught_anew(space, names)
    if runs or taught:
      processes.on_main(
        _refuse, space, [*dict.fromkeys(runs + taught)],
        [*stages, *(["fuse"] if taught else [])],
      )  # fmt: skip
  elif runs:
    processes.on_main(
      keeping.set_aside, space, runs, place
    )
    processes.on_main(say, f"set aside in {place}: {', '.join(runs)}")


def _make_room(space: Workspace, difference, place, say) -> None:
  """Sets everything aside: all of it was made from other data."""
  if place is None:
    raise networks.WouldReplaceError(
      provenance.refusal(space, difference)
    )
  runs = keeping.runs_with_work(space.path)
  keeping.set_aside(space, runs, place)
  files.write_json(space.path / "manifest.json", {})
  provenance.note(space)
  say(f"set aside in {place}: {', '.join(runs)}")


def _refuse(space: Workspace, runs, stages) -> None:
  raise networks.WouldReplaceError(
    keeping.refusal(space, runs, stages)
  )


def _replaced(space: Workspace, names) -> tuple[list[str], list[str]]:
  """Runs with work that would be replaced, and the stages that would do so."""
  runs: list[str] = []
  stages: list[str] = []
  for name in names:
    if not processes.on_main(_is_to_plan, space, name):
      continue
    plans = _KNOWN[name].plans(space.config, space.path)
    found = processes.on_main(
      _with_other_work,
      space.path,
      [(p.name, networks.origin(space.config, p)) for p in plans],
    )
    if found:
      runs, stages = runs + found, [*stages, name]
    if found and not _KNOWN[name].needs:  # all others learnt from it
      return processes.on_main(keeping.runs_with_work, space.path), stages
  return runs, stages


def _is_to_plan(space: Workspace, name) -> bool:
  """Whether a stage may train, and what its plans read is there."""
  return not is_up_to_date(space, name) and all(
    _is_as_left(space.path, need)
    for need in ("train", "fuse")
    if need in _KNOWN[name].needs
  )


def _with_other_work(workdir, origins) -> list[str]:
  return [
    name
    for name, origin in origins
    if networks.would_be_replaced(results.run_path(workdir, name), origin)
  ]


def _is_as_left(workdir, name) -> bool:
  """Whether a stage finished, from whatever, and its artefacts are whole."""
  note = _manifest(workdir).get(name)
  return note is not None and all(
    seals.seal(workdir / artefact) == seal
    for artefact, seal in note["outputs"].items()
  )


def _taught_anew(space: Workspace, names) -> list[str]:
  """Runs taught by a fusion that will be chosen in another way."""
  if "fuse" not in names or not processes.on_main(_fuses_anew, space):
    return []
  taught = [
    plan.name
    for name in ("distill", "compare")
    for plan in STAGES[name].plans(space.config, space.path)
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
  if not all(_is_as_left(space.path, name) for name in ("train", "fuse")):
    return False
  ours = inputs_of(space.config, "fuse")["config"]
  return _manifest(space.path)["fuse"]["inputs"]["config"] != ours


def _is_due(space: Workspace, name, say) -> bool:
  """Whether there is something to do, for which all is there."""
  if is_up_to_date(space, name):
    keeping.write_config(space)
    say(f"{name}: up to date")
    return False
  for need in _KNOWN[name].needs:
    check_ran(space, name, need)
  return True


def _begin(space: Workspace, name, plans, say) -> None:
  """Notes that a stage is under way."""
  left = [
    p for p in plans if not results.is_whole(results.run_path(space.path, p.name))
  ]
  cost = _KNOWN[name].cost(space.config, left) if left else []
  for artefact in _spoilt(space, name):
    say(f"{name}: {artefact} is damaged or incomplete, making it again")
  # First, so that whatever is there says what it is of.
  provenance.note(space)
  keeping.write_config(space)
  _note(space.path, name, None)
  for line in (f"{name} ...", *cost):
    say(line)


def _end(space: Workspace, name, result, say) -> None:
  """Notes that a stage finished."""
  note = {
    "inputs": inputs_of(space.config, name),
    "outputs": _seals(space, name),
  }
  _note(space.path, name, note)
  say(f"{name}: {result}")


def check_ran(space: Workspace, name, need) -> None:
  """Raises a `MissingStageError` if a stage that `name` needs has not run."""
  spoilt = _spoilt(space, need)
  if spoilt:
    why = f"of which {space.path / spoilt[0]} is damaged or incomplete"
  elif _note_of(space, need) is None:
    why = f"which has not run with this configuration in {space.path}"
  else:
    return
  raise MissingStageError(
    f"{name} needs {need}, {why}; run `kfkd {need}` first, or `kfkd run` for "
    "everything"
  )


def run(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  say: Callable[[str], None] = print,
  *,
  redo: bool = False,
) -> bool:
  """Runs every stage that is not up to date; returns whether any ran.

  Args:
    config: the configuration.
    workdir: the working directory.
    say: what to tell of it with.
    redo: set trained networks aside that were made from something else.

  Raises:
    lock.LockedError: another program is at work in `workdir`.
    networks.WouldReplaceError: such networks are there, without `redo`.
  """
  workdir = epath.Path(workdir)
  with held(workdir):
    place = keeping.new_place(workdir) if redo else None
    _protect(Workspace(config, workdir), STAGES, place, say)
    ran = [_run_stage(Workspace(config, workdir), name, say, place) for name in STAGES]
  return any(ran)


def _manifest(workdir: epath.Path) -> dict[str, Any]:
  """`inputs` and `outputs` of the stages that finished."""
  path = workdir / "manifest.json"
  if not files.exists(path):
    return {}
  manifest = files.read_json(path)
  try:
    return {
      name: {key: dict(note[key]) for key in ("inputs", "outputs")}
      for name, note in manifest.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{path} is damaged; remove it and run again: what is finished stays"
    ) from error


def _note(workdir: epath.Path, name: str, note: dict[str, Any] | None) -> None:
  """Records that a stage finished, or that it is under way."""
  manifest = _manifest(workdir)
  manifest.pop(name, None)
  if note is not None:
    manifest[name] = note
  files.write_json(workdir / "manifest.json", manifest)
