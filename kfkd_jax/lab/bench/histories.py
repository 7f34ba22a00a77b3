"""Stacked checkpoints: reading them, saving them, predicting with them."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, history, parallel
from kfkd_jax.lab.bench import measure, steps
from kfkd_jax.training import step


def measure_predictions(config_json: str) -> list[dict[str, Any]]:
  """`predict_checkpoints` against a loop of jitted single predictions."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, count = steps.setting(config), config.bench.checkpoints
  stacked = steps.stacked_teachers(at, count)
  apply_fn = step.eval_apply(at.recipe.module)
  size = min(config.predictions.batch_size, 256)
  shape = (size, *at.task.images.shape[1:])
  images = at.recipe.views.clean(np.resize(at.task.images[:], shape))
  on_device = jax.device_put(stacked)
  members = [jax.device_put(m) for m in history.unstack_checkpoints(stacked)]
  one = jax.jit(lambda v, x: jax.nn.softmax(apply_fn(v, x)))
  run = functools.partial(
    history.predict_checkpoints, apply_fn, on_device, images
  )
  ways = {"auto": run}
  # A CPU takes minutes for convolutions under vmap.
  if jax.default_backend() != "cpu":
    ways["map"] = functools.partial(run, impl="map")
    for chunk in (1, 2, 4, 8, 16):
      ways[f"vmap of {chunk}"] = functools.partial(
        run, impl="vmap", chunk=chunk
      )
  seconds = measure.in_turns(
    {"loop": lambda: [one(member, images) for member in members], **ways},
    config.bench.rounds,
  )
  rows = [
    measure.row(
      f"predict_checkpoints, {way}, {count} checkpoints",
      "loop of jitted predictions",
      seconds[way],
      seconds["loop"],
      count,
      limit=1.0 if way == "auto" else None,
    )
    for way in ways
  ]
  work = at.compute * size * count
  rate = work / measure.typical(seconds["auto"])
  of_peak = rate / measure.peak_flops(config.model.dtype)
  return [
    *rows,
    {
      "name": "predict_checkpoints, share of peak",
      "reference": "measured matrix product",
      "ratio": of_peak,
    },
  ]


def measure_storage(config_json: str) -> list[dict[str, Any]]:
  """Saving and restoring a history, against the same bytes raw."""
  config = ml_collections.ConfigDict(json.loads(config_json))
  at, count = steps.setting(config), config.bench.checkpoints
  stacked = steps.stacked_teachers(at, count)
  members = [
    parallel.replicate(member, at.mesh)
    for member in history.unstack_checkpoints(stacked)
  ]
  train = steps.make_bare_steps(at, config.bench.steps)
  template = jax.tree.map(lambda x: x[0], stacked)
  with tempfile.TemporaryDirectory() as folder:
    path, raw = epath.Path(folder) / "history", pathlib.Path(folder) / "raw"
    raw.write_bytes(b"".join(x.tobytes() for x in jax.tree.leaves(stacked)))
    with checkpoints.Checkpoints(path) as store:
      held_up: list[float] = []

      def save_and_train():
        started = time.perf_counter()
        store.save(1 + len(held_up), members[0])
        held_up.append(time.perf_counter() - started)
        train()
        store.wait()

      saving = measure.in_turns(
        {"both": save_and_train, "steps": train}, config.bench.rounds
      )
      store.delete_after(0)
      for c, member in enumerate(members, start=1):
        store.save(c, member)
      store.wait()
      chosen = list(range(1, count + 1))
      with measure.MemoryWatch() as memory:
        reading = measure.in_turns(
          {
            "restore": lambda: store.restore_stacked(chosen, template),
            "raw": raw.read_bytes,
          },
          config.bench.rounds,
        )
  size = sum(x.nbytes for x in jax.tree.leaves(stacked)) / 2**20
  return [
    measure.row(
      f"restore of {count} checkpoints, {size:.1f} MiB",
      "the same bytes raw",
      reading["restore"],
      reading["raw"],
      count,
    ),
    measure.row(
      "time that a save holds the loop up",
      f"{config.bench.steps} bare steps",
      held_up[1:],
      saving["steps"],
      1,
    ),
    measure.row(
      f"a save and {config.bench.steps} bare steps, until it is on disk",
      "the steps",
      saving["both"],
      saving["steps"],
      1,
    ),
    {
      "name": "memory of the restore",
      "reference": "the bytes",
      "ratio": (memory.summary()["extra_anon_mib"] or 0) / size,
    },
  ]
