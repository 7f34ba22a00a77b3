"""What the product costs on this machine, as ratios to stated references.

Every part runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, lock
from kfkd_jax.lab.bench import (
  audit,
  devices,
  fusion,
  histories,
  measure,
  peer,
  steps,
)

_PARTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
  "steps": steps.measure_steps,
  "distillation": steps.measure_distillation,
  "together": steps.measure_together,
  "stage": steps.measure_stage,
  "predictions": histories.measure_predictions,
  "storage": histories.measure_storage,
  "peer": peer.measure_peers,
}


def run(config: ml_collections.ConfigDict, workdir: epath.Path) -> str:
  """Writes `bench.json`, part by part, and returns the tables."""
  if "peer" in config.bench.parts:
    peer.check_installed()
  text = config_lib.to_json(config)
  rows, tables = [], []
  # Not here: some devices serve a single process at a time.
  machine = measure.in_own_process(_machine)
  content: dict[str, Any] = {"machine": machine}
  for part in config.bench.parts:
    print(f"{part} ...", flush=True)
    if part == "fusion":
      content["fusion"] = fusion.benchmarks(config.bench.fusion)
      tables.append(fusion.table(content["fusion"]))
    elif part == "audit":
      content["audit"] = audit.benchmarks(config.bench.fusion)
      tables.append(audit.table(content["audit"]))
    elif part == "devices":
      rows += devices.benchmarks(text, machine)
    else:
      rows += measure.in_own_process(_watched, part, text)
    if rows:
      content["ratios"] = rows
    with lock.held(workdir):
      files.write_json(workdir / "bench.json", content)
  if rows:
    tables.insert(0, table(rows))
  return "\n\n".join(tables)


def _watched(part: str, config_json: str) -> list[dict[str, Any]]:
  """A part's rows, each with the memory that the part took."""
  with measure.MemoryWatch() as memory:
    rows = _PARTS[part](config_json)
  peak = {
    "host_mib": memory.summary()["peak_anon_mib"],
    "device_mib": measure.device_memory_mib(),
  }
  return [{**row, **peak} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
  """The ratios as Markdown."""
  lines = [
    "| what | ms | against | ms | ratio | asked | host MiB | device MiB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    cells = [
      row["name"],
      _number(row.get("milliseconds"), ".2f"),
      row["reference"],
      _number(row.get("reference_milliseconds"), ".2f"),
      _number(row["ratio"], ".3f"),
      _number(row.get("limit"), ".2f"),
      _number(row.get("host_mib"), ".0f"),
      _number(row.get("device_mib"), ".0f"),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)


def _machine() -> dict[str, Any]:
  return {
    "processor": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "backend": jax.default_backend(),
    "devices": [device.device_kind for device in jax.devices()],
  }
