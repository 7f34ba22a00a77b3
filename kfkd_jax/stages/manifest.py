"""`manifest.json`: what each finished stage was made from, and what it left."""

from __future__ import annotations

from typing import Any

import ml_collections
from etils import epath

import kfkd_jax
from kfkd_jax import config as config_lib
from kfkd_jax import files
from kfkd_jax.run import seals
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages.registry import KNOWN


class MissingStageError(ValueError):
  """A stage was asked for whose predecessors have not run."""


def inputs_of(config: ml_collections.ConfigDict, name: str) -> dict[str, str]:
  """Digests of all that decides a stage's outcome, by where it comes from."""
  stage = KNOWN[name]
  return {
    "version": kfkd_jax.__version__,
    "config": files.digest(config_lib.deciding(config, name)),
    **{need: files.digest(inputs_of(config, need)) for need in stage.needs},
  }


def is_up_to_date(space: Workspace, name: str) -> bool:
  """Whether a stage finished from these inputs and left what is there now."""
  ran = _note_of(space, name) is not None
  return ran and not spoilt(space, name)


def _note_of(space: Workspace, name) -> dict[str, Any] | None:
  """What is noted of a stage that finished from these inputs."""
  note = read(space.path).get(name)
  same = note is not None and note["inputs"] == inputs_of(space.config, name)
  return note if same else None


def spoilt(space: Workspace, name) -> list[str]:
  """Artefacts of a finished stage that are not as it left them."""
  note = _note_of(space, name)
  if note is None:
    return []
  # As noted, since earlier versions sealed other parts of a folder.
  noted = note["outputs"] or dict.fromkeys(KNOWN[name].artefacts(space))
  return [
    seals.culprit(artefact, space.path / artefact)
    for artefact, seal in noted.items()
    if seals.seal(space.path / artefact) != seal
  ]


def is_as_left(workdir, name) -> bool:
  """Whether a stage finished, from whatever, and its artefacts are whole."""
  note = read(workdir).get(name)
  return note is not None and all(
    seals.seal(workdir / artefact) == seal
    for artefact, seal in note["outputs"].items()
  )


def check_ran(space: Workspace, name, need) -> None:
  """Raises a `MissingStageError` if a stage that `name` needs has not run."""
  broken = spoilt(space, need)
  if broken:
    why = f"of which {space.path / broken[0]} is damaged or incomplete"
  elif _note_of(space, need) is None:
    why = f"which has not run with this configuration in {space.path}"
  else:
    return
  raise MissingStageError(
    f"{name} needs {need}, {why}; run `kfkd {need}` first, or `kfkd run` for "
    "everything"
  )


def seals_of(space: Workspace, name) -> dict[str, str]:
  artefacts = KNOWN[name].artefacts(space)
  return {artefact: seals.seal(space.path / artefact) for artefact in artefacts}


def read(workdir: epath.Path) -> dict[str, Any]:
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


def write(workdir: epath.Path, name: str, note: dict[str, Any] | None) -> None:
  """Records that a stage finished, or that it is under way."""
  manifest = read(workdir)
  manifest.pop(name, None)
  if note is not None:
    manifest[name] = note
  files.write_json(workdir / "manifest.json", manifest)
