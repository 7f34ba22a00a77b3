"""An audit of a million labels from a history that lies on disk."""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from kfkd_jax import auditing
from kfkd_jax.lab.bench import fusion
from kfkd_jax.lab.bench.measure import MemoryWatch, in_own_process

CASES = {
  "tiny": fusion.HistoryCase((6, 500, 10), "float32", True, 0),
  "memory": fusion.HistoryCase((100, 100_000, 10), "float32", True, 0),
  "disk": fusion.HistoryCase((100, 1_000_000, 10), "float32", True, 0),
}


def benchmarks(scale: str) -> dict[str, Any]:
  """Measures an audit of a made-up history, read through a memory map.

  Args:
    scale: a key of `CASES`; `disk` takes 4 GB.

  Returns:
    scale, shape, dtype, array_mib, seconds, those that processors worked
    (processor_seconds), and memory as in `fusion.benchmarks`.
  """
  case = CASES[scale]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "probs.npy"
    labels = fusion.write_history(path, case.shape, case.dtype)
    row = in_own_process(_measure, str(path), labels)
  return {"scale": scale, "shape": list(case.shape), "dtype": case.dtype, **row}


def table(row: dict[str, Any]) -> str:
  """The measurement as Markdown."""
  extra = row["extra_anon_mib"]
  return "\n".join([
    "| audit of | array MiB | seconds | of processors | extra MiB |",
    "| --- | --- | --- | --- | --- |",
    f"| {row['shape']} {row['dtype']} | {row['array_mib']:.0f} "
    f"| {row['seconds']:.2f} | {row['processor_seconds']:.2f} "
    f"| {'-' if extra is None else f'{extra:.0f}'} |",
  ])  # fmt: skip


def _measure(path: str, labels: np.ndarray) -> dict[str, Any]:
  probs = np.load(path, mmap_mode="r")
  with MemoryWatch() as memory:
    start, worked = time.perf_counter(), time.process_time()
    auditing.audit(probs, labels)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
  return {
    "array_mib": probs.nbytes / 2**20,
    "seconds": seconds,
    "processor_seconds": worked,
    **memory.summary(),
  }
