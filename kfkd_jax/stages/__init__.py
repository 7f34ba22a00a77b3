"""The pipeline: train, diagnose, fuse, distil, compare, report, export.

A stage is `run(config, workdir) -> str`: it reads files, writes files and
returns what to print. `manifest.json` notes for each what it was made from;
a stage runs again only if that changed or its artefacts are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
from etils import epath

import kfkd_jax
from kfkd_jax import config as config_lib
from kfkd_jax import files, lock
from kfkd_jax.stages import (
  compare,
  diagnose,
  distill,
  export,
  fuse,
  networks,
  report,
  train,
)


class Stage(NamedTuple):
  """A step of the pipeline and what it depends on.

  Attributes:
    run: does the work.
    keys: configuration that decides its outcome.
    needs: stages whose artefacts it reads.
    artefacts: what it leaves in the working directory, by configuration.
  """

  run: Callable[[ml_collections.ConfigDict, epath.Path], str]
  keys: tuple[str, ...]
  needs: tuple[str, ...]
  artefacts: Callable[[ml_collections.ConfigDict], Sequence[str]]


STAGES: dict[str, Stage] = {
  "train": Stage(
    train.run,
    keys=networks.TRAINING_KEYS,
    needs=(),
    artefacts=lambda config: ("noise.npz", "runs/teacher/finished.json"),
  ),
  "diagnose": Stage(
    diagnose.run,
    keys=(),
    needs=("train",),
    artefacts=lambda config: ("diagnosis.json",),
  ),
  "fuse": Stage(
    fuse.run,
    keys=("fuse", "selection"),
    needs=("train",),
    artefacts=lambda config: ("fusion.json",),
  ),
  "distill": Stage(
    distill.run,
    keys=("distill",),
    needs=("train", "fuse"),
    artefacts=distill.artefacts,
  ),
  "compare": Stage(
    compare.run,
    keys=("compare",),
    needs=("train", "fuse", "distill"),
    artefacts=lambda config: ("results.jsonl",),
  ),
  "report": Stage(
    report.run,
    keys=("report",),
    needs=("train", "diagnose", "fuse", "distill", "compare"),
    artefacts=lambda config: ("report/index.html",),
  ),
}

# Stages that only their own command runs.
ON_REQUEST: dict[str, Stage] = {
  "export": Stage(
    export.run,
    keys=("export",),
    needs=("train", "fuse", "distill", "compare"),
    artefacts=export.artefacts,
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
    "config": files.digest(config_lib.subset(config, stage.keys)),
    **{need: files.digest(inputs_of(config, need)) for need in stage.needs},
  }


def is_up_to_date(
  config: ml_collections.ConfigDict, workdir: epath.Path, name: str
) -> bool:
  """Whether a stage finished from these inputs and its artefacts are there."""
  note = _manifest(workdir).get(name)
  if note is None or note["inputs"] != inputs_of(config, name):
    return False
  return all((workdir / a).exists() for a in _KNOWN[name].artefacts(config))


def run_stage(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  name: str,
  say: Callable[[str], None] = print,
) -> bool:
  """Runs one stage unless it is up to date; returns whether it ran.

  Raises:
    lock.LockedError: another program is at work in `workdir`.
  """
  workdir = epath.Path(workdir)
  with lock.held(workdir):
    return _run_stage(config, workdir, name, say)


def _run_stage(config, workdir, name, say) -> bool:
  if is_up_to_date(config, workdir, name):
    say(f"{name}: up to date")
    return False
  for need in _KNOWN[name].needs:
    if not is_up_to_date(config, workdir, need):
      raise MissingStageError(
        f"{name} needs {need}, which has not run with this configuration in "
        f"{workdir}; run `kfkd {need}` first, or `kfkd run` for everything"
      )
  _note(workdir, name, None)
  files.write_text(workdir / "config.json", config_lib.to_json(config))
  say(f"{name} ...")
  result = _KNOWN[name].run(config, workdir)
  _note(workdir, name, inputs_of(config, name))
  say(f"{name}: {result}")
  return True


def run(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  say: Callable[[str], None] = print,
) -> bool:
  """Runs every stage that is not up to date; returns whether any ran.

  Raises:
    lock.LockedError: another program is at work in `workdir`.
  """
  workdir = epath.Path(workdir)
  with lock.held(workdir):
    ran = [_run_stage(config, workdir, name, say) for name in STAGES]
  return any(ran)


def _manifest(workdir: epath.Path) -> dict:
  path = workdir / "manifest.json"
  return files.read_json(path) if path.exists() else {}


def _note(
  workdir: epath.Path, name: str, inputs: dict[str, str] | None
) -> None:
  """Records that a stage finished from `inputs`, or that it is under way."""
  manifest = _manifest(workdir)
  manifest.pop(name, None)
  if inputs is not None:
    manifest[name] = {"inputs": inputs}
  files.write_json(workdir / "manifest.json", manifest)
