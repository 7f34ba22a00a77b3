"""The data that a working directory began with: `data.json`.

A student is compared with its teacher example by example, so both must have
seen the same data. Names and numbers, labels and images stand here as digests,
and nothing is reused once they differ.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files
from kfkd_jax.run.workspace import Workspace

NOTE = "data.json"


def difference(space: Workspace) -> str:
  """What of the data is not as it was; "" where it is, or is another set."""
  before, now = _noted(space.path), _described(space)
  if before is None or before["config"] != now["config"]:
    return ""
  was, found = before["fingerprint"], now["fingerprint"]
  return ", ".join(
    # Numbers of images are worth showing; all else is digests.
    f"{key} ({was.get(key)} to {found[key]})" if "number" in key else key
    for key in found
    if was.get(key) != found[key]
  )


def refusal(space: Workspace, difference: str) -> str:
  """What to do where the data of the same name and place has changed."""
  return (
    f"the data of {space.config.data.name!r} is not what {space.path} was "
    f"made from: {difference} changed; put it back, give --workdir=NEW, or "
    "--redo to set aside what was made and make it again"
  )


def note(space: Workspace) -> None:
  """Notes the data that is worked with now."""
  now = _described(space)
  if _noted(space.path) != now:
    files.write_json(space.path / NOTE, files.sealed(now))


def _noted(workdir: epath.Path) -> dict[str, Any] | None:
  path = workdir / NOTE
  if not files.exists(path):
    return None
  content = files.unsealed(files.read_json(path, dict))
  if content is None:
    raise ValueError(f"{path} is damaged; remove it and run again")
  return content


def _described(space: Workspace) -> dict[str, Any]:
  wanted = {
    key: value
    for key, value in config_lib.deciding(space.config, "train").items()
    if key.startswith("data.")
  }
  wanted["noise.field"] = space.config.noise.field
  if space.config.noise.corrections is not None:
    wanted["noise.corrections"] = space.config.noise.corrections
  fingerprint = dict(space.task.fingerprint)
  return {"config": files.digest(wanted), "fingerprint": fingerprint}
