"""Finds wrong labels: `audit.csv`, `audit.json` and a page."""

from __future__ import annotations

import os
import shlex

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import auditing, files
from kfkd_jax.config import set_keys
from kfkd_jax.config.tree import ConfigError
from kfkd_jax.data.stored import Stored
from kfkd_jax.predictions import read_foreign
from kfkd_jax.report import audit
from kfkd_jax.report.audit import Subject
from kfkd_jax.run import build, results, seals, workspace
from kfkd_jax.run.workspace import Workspace

FOLDER = "audit"


def run(space: Workspace) -> str:
  """Writes `audit/` from the teacher's predictions of the training points."""
  return "\n".join(write_of_run(space, space.path / FOLDER))


def write_of_run(space: Workspace, folder: epath.Path) -> list[str]:
  """Writes the audit of a working directory; returns what to say.

  The last line is the command that trains, fuses and distils anew on the labels
  that are left, where there is one: a run takes one table of corrections.
  """
  subject = of_run(space)
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
  """The training points of a working directory, as the teacher saw them."""
  if not space.config.predictions.train:
    raise ConfigError(
      f"{space.path} keeps no predictions of its training points, which an "
      "audit reads; train with predictions.train=True"
    )
  task = space.task
  store = results.predictions(space.path, workspace.TEACHER, "train")
  images = task.splits["train"].images
  return Subject(
    found=auditing.audit(store, task.given),
    probs=store,
    epochs=build.epochs_at(space, store.epochs),
    given=task.given,
    clean=None if np.array_equal(task.given, store.labels) else store.labels,
    ids=store.ids,
    class_names=task.class_names,
    title=task.name,
    images=images,
    names=images.name if isinstance(images, Stored) else None,
  )


def of_file(path: epath.Path) -> Subject:
  """The points of somebody's saved predictions."""
  probs, labels, epochs = read_foreign(path)
  return Subject(
    found=auditing.audit(probs, labels),
    probs=probs,
    epochs=epochs.tolist(),
    given=labels,
    clean=None,
    ids=np.arange(len(labels)),
    class_names=tuple(map(str, range(probs.shape[2]))),
    title=os.path.basename(os.fspath(path)),
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
  seals.write_sums(folder, ["audit.csv", "audit.json", *written.names])
  return audit.headline(summary)
