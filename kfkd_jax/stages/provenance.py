"""The data that a working directory began with: `data.json`.

A student is compared with its teacher example by example, so both must have
seen the same data. Names and numbers, labels and images stand here as digests,
and nothing is reused once they differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files
from kfkd_jax.stages import experiment, networks

NOTE = "data.json"


def check(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Notes the data of a new working directory; refuses another's.

  Raises:
    ValueError: the data of the same name and place is not what it was.
  """
  note = workdir / NOTE
  keys = [k for k in networks.TRAINING_KEYS if k.startswith("data.")]
  wanted = config_lib.subset(config, [*keys, "noise.field"])
  fingerprint = dict(experiment.load_task(config).fingerprint)
  now = {"config": files.digest(wanted), "fingerprint": fingerprint}
  if note.exists():
    before = files.unsealed(files.read_json(note))
    if before is None:
      raise ValueError(f"{note} is damaged; remove it and run again")
    if before == now:
      return
    if before["config"] == now["config"]:
      raise ValueError(
        f"the data of {config.data.name!r} is not what {workdir} was made "
        f"from: {_difference(before['fingerprint'], fingerprint)} "
        "changed; put it back, take a new --workdir=NEW, or replace what was "
        "made (--redo)"
      )
  files.write_json(note, files.sealed(now))


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
  changed = [key for key in now if before.get(key) != now[key]]
  return ", ".join(
    f"{key} ({before.get(key)} to {now[key]})" if "number" in key else key
    for key in changed
  )
