"""Finds wrong labels: `audit.csv`, `audit.json` and a page.

With `audit.folds`, `out_of_sample.npz` too, which others can read as well.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import auditing, files, processes
from kfkd_jax.config import set_keys
from kfkd_jax.config.tree import ConfigError
from kfkd_jax.data.stored import Stored, take
from kfkd_jax.predictions import read_foreign
from kfkd_jax.report import audit
from kfkd_jax.report.audit import Subject
from kfkd_jax.run import (
  build,
  networks,
  results,
  seals,
  streams,
  workspace,
)
from kfkd_jax.run.workspace import Workspace

FOLDER = "audit"
OUT_OF_SAMPLE = "out_of_sample.npz"


def plans(space: Workspace) -> list[networks.Plan]:
  """A network for every fold, trained on the others: of the teacher's kind."""
  return [_fold_plan(space, k) for k in range(space.config.audit.folds or 0)]


def _fold_plan(space: Workspace, number: int) -> networks.Plan:
  changes = {"train.average_decay": None}  # nobody reads the average

  def lesson() -> networks.Lesson:
    task = space.task
    rest = np.flatnonzero(folds_of(space) != number)
    images: Any = take(task.images, rest)
    taught = networks.supervised(space.changed(changes).config)
    return taught._replace(extra={"image": images, **task.taught(rest)})

  return networks.Plan(
    f"fold_{number}",
    lesson,
    inputs={"folds": space.config.audit.folds},
    changes=changes,
  )


def folds_of(space: Workspace) -> np.ndarray:
  """The folds of the training points, `i64[N]`, each with all labels alike."""
  given = space.task.given
  generator = np.random.default_rng(
    (streams.stream(space.config, "selection"), space.config.audit.folds)
  )
  drawn = generator.permutation(len(given))
  drawn = drawn[np.argsort(given[drawn], kind="stable")]
  folds = np.empty(len(given), np.int64)
  folds[drawn] = np.arange(len(given)) % space.config.audit.folds
  return folds


def cost(space: Workspace, plans: list[networks.Plan]) -> list[str]:
  """What the networks of the folds take, which have fewer points each."""
  work = networks.work(space, plans)
  return [f"{len(plans)} networks, a fold apart each: at most {work}"]


def artefacts(space: Workspace) -> list[str]:
  """What the stage leaves in the working directory."""
  return [FOLDER, *(f"runs/{plan.name}" for plan in plans(space))]


def run(space: Workspace) -> str:
  """Writes `audit/` from what networks said of the training points."""
  for plan in plans(space):
    networks.carry_out(space, plan)
  lines = processes.on_main(write_of_run, space, space.path / FOLDER)
  return "\n".join(lines)


def write_of_run(space: Workspace, folder: epath.Path) -> list[str]:
  """Writes the audit of a working directory; returns what to say.

  The last line is the command that trains, fuses and distils anew on the labels
  that are left, where there is one: a run takes one table of corrections.
  """
  subject = of_run(space)
  told = folder / OUT_OF_SAMPLE
  if space.config.audit.folds is None:
    told.unlink(missing_ok=True)  # of an audit before
  else:
    files.write_npz(
      told, probs=subject.probs, labels=subject.given, ids=subject.ids
    )
  lines = [write(subject, folder, space.config)]
  if subject.found.accused.any() and space.config.noise.corrections is None:
    anew = shlex.join([
      "kfkd", "run", f"--workdir={space.path}-mended",
      *(f"--config.{key}={value}" for key, value in set_keys(space.config)),
      f"--config.noise.corrections={folder / 'audit.csv'}",
    ])  # fmt: skip
    lines.append(f"train, fuse and distil without them:\n{anew}")
  return lines


def of_run(space: Workspace) -> Subject:
  """The training points of a working directory, as networks saw them.

  The teacher at every epoch; with `audit.folds` the networks that did not learn
  from them, at their end.
  """
  if not space.config.predictions.train:
    raise ConfigError(
      f"{space.path} keeps no predictions of its training points, which an "
      "audit reads; train with predictions.train=True"
    )
  task = space.task
  store = results.predictions(space.path, workspace.TEACHER, "train")
  images = task.splits["train"].images
  folds, title = plans(space), task.name
  probs: Any = store
  if folds:
    probs = _out_of_sample(space, folds)
    title = f"{title}, out of sample in {len(folds)} folds"
  return Subject(
    found=auditing.audit(probs, task.given),
    probs=probs,
    epochs=build.epochs_at(space, store.epochs)[-len(probs) :],
    given=task.given,
    clean=None if np.array_equal(task.given, store.labels) else store.labels,
    ids=store.ids,
    class_names=task.class_names,
    title=title,
    images=images,
    names=images.name if isinstance(images, Stored) else None,
  )


def _out_of_sample(space: Workspace, plans: list[networks.Plan]) -> np.ndarray:
  """What the networks said of the points they did not learn, `f32[1, N, K]`."""
  folds = folds_of(space)
  probs = np.empty((1, len(folds), space.task.num_classes), np.float32)
  for number, plan in enumerate(plans):
    if not results.is_whole(results.run_path(space.path, plan.name)):
      raise ConfigError(
        f"audit.folds={len(plans)} needs networks that {space.path} has not; "
        "run kfkd audit without --output first, or give "
        "--config.audit.folds=None to read the teacher's history"
      )
    store = results.predictions(space.path, plan.name, "train")
    held_out = folds == number
    probs[0, held_out] = store[len(store) - 1][held_out]
  return probs


def of_file(path: epath.Path) -> Subject:
  """The points of somebody's saved predictions."""
  probs, labels, epochs, ids = read_foreign(path)
  numbered = np.issubdtype(ids.dtype, np.integer)
  return Subject(
    found=auditing.audit(probs, labels),
    probs=probs,
    epochs=epochs.tolist(),
    given=labels,
    clean=None,
    ids=ids if numbered else np.arange(len(ids)),
    class_names=tuple(map(str, range(probs.shape[2]))),
    title=os.path.basename(os.fspath(path)),
    names=None if numbered else lambda n: str(ids[n]),
  )


def write(
  subject: Subject, folder: epath.Path, config: ml_collections.ConfigDict
) -> str:
  """Writes the table, the summary and the page; returns what to say."""
  from kfkd_jax.report import audit_page, page  # Matplotlib takes its time

  summary = audit.summarise(
    subject,
    level=config.compare.level,
    num_samples=config.compare.bootstrap_samples,
    seed=config.seed,
  )
  files.write_text(folder / "audit.csv", "".join(audit.to_csv(subject)))
  files.write_json(folder / "audit.json", summary)
  made = audit_page.render(
    subject, summary, num_examples=config.report.num_examples
  )
  written = page.write(made, folder / "index.html")
  seals.write_sums(folder, [
    "audit.csv", "audit.json", OUT_OF_SAMPLE, *written.names,
  ])  # fmt: skip
  return audit.headline(summary)
