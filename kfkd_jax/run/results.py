"""What a working directory holds of finished networks, fusions and rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from kfkd_jax import (
  checkpoints,
  files,
  models,
  processes,
)
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import build, workspace
from kfkd_jax.run.workspace import Workspace

MODEL = "model.json"


SECONDS = "seconds.json"


INPUTS = "inputs.json"


FINISHED = "finished.json"


_INCOMPLETE = "incomplete"


def run_path(workdir: epath.Path, name: str) -> epath.Path:
  """The folder of the run called `name`."""
  return epath.Path(workdir) / "runs" / name


def run_names(config: ml_collections.ConfigDict, name: str) -> list[str]:
  """The folders that training the run `name` makes."""
  averages = config.train.average_decay is not None
  return [name, f"{name}_ema"] if averages else [name]


def owner(run: epath.Path) -> dict[str, str]:
  """Whose the files of a run are, as they say themselves."""
  made_from = origin_of(run)
  inputs = {} if made_from is None else {"inputs": made_from}
  return {"run": run.name, **inputs}


def open_history(workdir: epath.Path, name: str) -> checkpoints.Checkpoints:
  """The checkpoints of the run `name`; a context manager."""
  run = run_path(workdir, name)
  whose = processes.on_main(owner, run)
  return checkpoints.Checkpoints(run / "history", owner=whose)


def origin_of(run: epath.Path) -> str | None:
  note = run / INPUTS
  if not files.exists(note):
    return None
  try:
    return files.read_json(note)["digest"]
  except (TypeError, KeyError) as error:
    raise ValueError(f"{note} is damaged; remove it and run again") from error


def contents(run: epath.Path) -> list[str]:
  """The checkpoints and predictions of a run; empty folders count as none."""
  found = [f"history/{p.name}" for p in _filled(run / "history")]
  for split in _filled(run / "predictions"):
    found += [f"predictions/{split.name}/{p.name}" for p in _filled(split)]
  return sorted(found)


def is_whole(run: epath.Path) -> bool:
  """Whether a run finished and still holds what it held then."""
  return seal(run) != _INCOMPLETE


def seal(run: epath.Path) -> str:
  """What a finished run holds and was made from, in short; or that it isn't."""
  try:
    note = files.read_json(run / FINISHED)
    if note["contents"] != contents(run):
      return _INCOMPLETE
  except (FileNotFoundError, ValueError, TypeError, KeyError):
    return _INCOMPLETE
  # Runs of earlier versions noted their contents alone; their seals hold.
  return files.digest(note if "inputs" in note else note["contents"])


def _filled(folder: epath.Path) -> list[epath.Path]:
  if not files.is_folder(folder):
    return []
  # Hidden names and empty folders are what a killed program left.
  return [
    p
    for p in folder.iterdir()
    if not p.name.startswith(".")
    and (not files.is_folder(p) or any(p.iterdir()))
  ]


def holds_work(run: epath.Path) -> bool:
  """Whether a run has a checkpoint, of its history or to continue from."""
  found = [*_filled(run / "history"), *_filled(run / "resume")]
  return any(p.name.isdigit() for p in found)


def seconds(run: epath.Path) -> float | None:
  """How long the run was trained; None if that is not known."""
  with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
    return float(files.read_json(run / SECONDS)["seconds"])
  return None


def configured_as(space: Workspace, name: str) -> Workspace:
  """The workspace with the network that the run `name` is of."""
  run = run_path(space.path, name)

  def model_of() -> dict[str, Any] | None:
    """None for a run of a version that made all of them alike."""
    note = run / MODEL
    if not files.exists(note):
      return None
    content = files.unsealed(files.read_json(note))
    if content is None:
      raise ValueError(f"{note} is damaged; remove it and run again")
    wrong = files.differences(content, owner(run))
    if wrong:
      raise ValueError(
        f"{note} belongs elsewhere ({wrong}); remove it and run again"
      )
    return content["model"]

  model = processes.on_main(model_of)
  if model is None or model == space.config.model.to_dict():
    return space
  return space.changed({f"model.{k}": v for k, v in model.items()})


def predictions(workdir: epath.Path, name: str, split: str) -> PredictionStore:
  """The stored predictions of a run on a split."""
  run = run_path(workdir, name)
  return PredictionStore(
    run / "predictions" / split, owner={**owner(run), "split": split}
  )


def read_members(
  space: Workspace,
  weights: np.ndarray,
  *,
  name: str = workspace.TEACHER,
) -> tuple[dict[str, Any], np.ndarray]:
  """The checkpoints that carry weight, of the teacher or another run.

  Returns:
    Stacked variables `[M, ...]` and their weights `[M]`.
  """
  epochs = predictions(space.path, name, "test").epochs
  members = np.flatnonzero(weights)
  with open_history(space.path, name) as history:
    kept = history.steps()
    if len(epochs) != len(weights) or not {epochs[m] for m in members} <= {
      *kept
    }:
      raise ValueError(
        f"{history.path} holds {len(kept)} checkpoints of {len(epochs)} "
        f"epochs, which {len(members)} of {len(weights)} weights do not fit; "
        "run the fuse stage again"
      )
    stacked = history.restore_stacked(
      [epochs[m] for m in members],
      template(configured_as(space, name)),
    )
  return stacked, np.asarray(weights)[members]


def kept_checkpoints(workdir: epath.Path, name: str) -> np.ndarray:
  """Places in a run's stored predictions whose networks are kept, `i64[M]`."""

  def kept() -> list[int]:
    history = run_path(workdir, name) / "history"
    there = {int(p.name) for p in _filled(history) if p.name.isdigit()}
    epochs = predictions(workdir, name, "test").epochs
    return [place for place, epoch in enumerate(epochs) if epoch in there]

  return np.asarray(processes.on_main(kept), int)


def template(
  space: Workspace,
  *,
  module: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> dict[str, Any]:
  """The shapes of a network's variables, of the configured one or a plan's."""
  task = space.task
  network = module(build.make_module(space))
  return jax.eval_shape(
    lambda: models.init(network, jax.random.key(0), task.images[:1])
  )


def over_all(
  weights: ArrayLike, kept: np.ndarray, num_checkpoints: int
) -> np.ndarray:
  """Weights over the checkpoints `kept` as weights over all C, `f32[C]`."""
  spread = np.zeros(num_checkpoints, np.float32)
  spread[kept] = weights
  return spread


def weights_of(workdir: epath.Path, method: str, fold: int = 0) -> np.ndarray:
  """`f32[C]` weights that the fuse stage chose."""
  content = processes.on_main(files.read_json, workdir / "fusion.json")
  weights = content["folds"][fold]["methods"][method]["weights"]
  return np.asarray(weights, np.float32)


class Hits(NamedTuple):
  """Who was right where: M methods, F folds, all N examples of `test`.

  Attributes:
    methods: `str[M]`.
    ids: `int64[N]` of the examples.
    hits: `bool[F, M, N]`; false where nothing was scored.
    tested: `bool[F, N]` the test points of a fold.
    scored: `bool[F, M]` the methods of a fold.
  """

  methods: np.ndarray
  ids: np.ndarray
  hits: np.ndarray
  tested: np.ndarray
  scored: np.ndarray


def read_hits(workdir: epath.Path) -> Hits:
  """What `run` wrote into `hits.npz`."""
  return Hits(**files.read_npz(workdir / "hits.npz", Hits._fields))


def final_accuracy(workdir: epath.Path, name: str) -> float:
  """A run's accuracy on the whole test split, after its last epoch."""
  store = predictions(workdir, name, "test")
  return float(np.mean(store[len(store) - 1].argmax(-1) == store.labels))
