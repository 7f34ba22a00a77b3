"""The pipeline: train, diagnose, fuse, distil, rivals, compare, report, export.

A stage reads files, writes files and returns what to print. It runs again only
if what it was made from changed (`manifest`) or its artefacts are gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import ml_collections
from etils import epath

from kfkd_jax import files, lock, processes
from kfkd_jax.run import keeping, provenance, results
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import guard, manifest
from kfkd_jax.stages.manifest import (
  MissingStageError,
  check_ran,
  inputs_of,
  is_up_to_date,
)
from kfkd_jax.stages.registry import KNOWN, ON_REQUEST, STAGES

__all__ = [
  "ON_REQUEST",
  "STAGES",
  "MissingStageError",
  "check_ran",
  "held",
  "inputs_of",
  "is_up_to_date",
  "run",
  "run_stage",
]


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
    space = Workspace(config, workdir)
    due = [
      name
      for name in STAGES
      if not processes.on_main(is_up_to_date, space, name)
    ]
    # Now, before hours of what comes first, and again before each: what that
    # left may be other than was to be expected.
    guard.protect(space, due, place, say)
    ran = [_run_stage(space, name, say, place) for name in STAGES]
  return any(ran)


def run_stage(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  name: str,
  say: Callable[[str], None] = print,
  *,
  redo: bool = False,
) -> bool:
  """Runs the stage `name` as `run` would; returns whether it ran."""
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
  stage = KNOWN[name]
  if not processes.on_main(_is_due, space, name, say):
    return False
  guard.protect(space, [name], place, say)
  plans = stage.plans(space)
  processes.on_main(_begin, space, name, plans, say)
  if stage.alone:
    result = processes.on_main(stage.run, space)
  else:
    result = stage.run(space)
  processes.on_main(_end, space, name, result, say)
  return True


def _is_due(space: Workspace, name, say) -> bool:
  """Whether there is something to do, for which all is there."""
  if is_up_to_date(space, name):
    keeping.write_config(space)
    say(f"{name}: up to date")
    return False
  for need in KNOWN[name].needs:
    check_ran(space, name, need)
  return True


def _begin(space: Workspace, name, plans, say) -> None:
  """Notes that a stage is under way."""
  left = [
    p
    for p in plans
    if not results.is_whole(results.run_path(space.path, p.name))
  ]
  cost = KNOWN[name].cost(space, left) if left else []
  for artefact in manifest.spoilt(space, name):
    say(f"{name}: {artefact} is damaged or incomplete, making it again")
  # First, so that whatever is there says what it is of.
  provenance.note(space)
  keeping.write_config(space)
  manifest.write(space.path, name, None)
  for line in (f"{name} ...", *cost):
    say(line)


def _end(space: Workspace, name, result, say) -> None:
  """Notes that a stage finished."""
  note = {
    "inputs": inputs_of(space.config, name),
    "outputs": manifest.seals_of(space, name),
  }
  manifest.write(space.path, name, note)
  say(f"{name}: {result}")
