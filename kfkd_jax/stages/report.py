"""Writes the report page."""

from __future__ import annotations

import ml_collections
from etils import epath

from kfkd_jax import files


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Writes `report/index.html`."""
  files.write_text(workdir / "report" / "index.html", "")
  return "written"
