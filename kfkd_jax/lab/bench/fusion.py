"""Fusion rules on made-up histories, up to sizes that no memory holds."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from kfkd_jax import fusion
from kfkd_jax.lab.bench.measure import MemoryWatch, in_own_process


class HistoryCase(NamedTuple):
  """A made-up history `[C, N, K]` and how often to fuse it.

  Attributes:
    shape: C, N, K.
    dtype: of the stored probabilities.
    mapped: read through a memory map instead of being held in memory.
    repeats: runs after the first, of which the median counts; with 0 the
      first one counts.
  """

  shape: tuple[int, int, int]
  dtype: str
  mapped: bool
  repeats: int


FUSION_CASES = {
  "tiny": HistoryCase((40, 500, 10), "float32", False, 2),
  "memory": HistoryCase((200, 10_000, 100), "float32", False, 5),
  "disk": HistoryCase((90, 50_000, 1000), "float16", True, 0),
}


def table(rows: list[dict[str, Any]]) -> str:
  """The measurements as Markdown."""
  lines = [
    "| rule | history | array MiB | seconds | first call | extra MiB | gap |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    gap = "-" if row["gap"] is None else f"{row['gap']:.1e}"
    extra = row["extra_anon_mib"]
    lines.append(
      f"| {row['name']} | {row['shape']} {row['dtype']} "
      f"| {row['array_mib']:.0f} | {row['seconds']:.2f} "
      f"| {row['first_seconds']:.2f} "
      f"| {'-' if extra is None else f'{extra:.0f}'} | {gap} |"
    )
  return "\n".join(lines)


def benchmarks(
  scale: str = "memory", *, directory: str | None = None
) -> list[dict[str, Any]]:
  """Measures Knowledge Fusion and mixture fusion on a made-up history.

  Args:
    scale: `tiny`, `memory` (0.8 GB, held in memory) or `disk` (9 GB as
      float16, read from a memory map).
    directory: where the history is written, and removed afterwards; None for
      the system's temporary directory.

  Returns:
    A row for each rule: name, scale, shape, dtype, array_mib; seconds (the
    median) and first_seconds (with compilation); memory that no file backs,
    beyond what was held before (extra_anon_mib) and in all (peak_anon_mib),
    and peak_rss_mib with mapped pages, None where the system does not tell;
    num_windows that Knowledge Fusion accepted and num_members, the
    checkpoints with weight; accuracy, gain over the final network, and the
    mixture's optimality gap.
  """
  if scale not in FUSION_CASES:
    raise ValueError(f"scale must be one of {list(FUSION_CASES)}; got {scale}.")
  case = FUSION_CASES[scale]
  with tempfile.TemporaryDirectory(dir=directory) as folder:
    path = pathlib.Path(folder) / "probs.npy"
    labels = write_history(path, case.shape, case.dtype)
    rows = [
      in_own_process(_measure_fusion, rule, str(path), labels, case)
      for rule in ("knowledge_fusion", "mixture_fusion")
    ]
  return [{"scale": scale, **row} for row in rows]


def write_history(
  path: pathlib.Path, shape: tuple[int, int, int], dtype: str, *, seed: int = 0
) -> np.ndarray:
  """Writes probabilities of a run that learns, wavers and forgets.

  Each example has difficulties of its own, the same at all checkpoints, and a
  slow random walk around them. The right class's evidence grows early, and
  for some examples that of one wrong class grows late.

  Args:
    path: the `.npy` file to write.
    shape: C, N, K.
    dtype: of the file.
    seed: of the random numbers.

  Returns:
    `i64[N]` labels.
  """
  _, num_examples, num_classes = shape
  rng = np.random.default_rng(seed)
  labels = rng.integers(num_classes, size=num_examples)
  stored = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
  rows = max(1, 2_000_000 // num_classes)
  for start in range(0, num_examples, rows):
    part = slice(start, start + rows)
    _write_examples(rng, stored[:, part], labels[part])
  stored.flush()
  return labels


def _write_examples(
  rng: np.random.Generator, out: np.ndarray, labels: np.ndarray
) -> None:
  """Fills `out[C, N, K]`."""
  num_checkpoints, num_examples, num_classes = out.shape
  each = np.arange(num_examples)
  mistakes = rng.integers(num_classes, size=num_examples)
  learning = rng.normal(4.5, 2, num_examples)
  forgetting = rng.normal(0, 3, num_examples)
  size = (num_examples, num_classes)
  fixed = rng.standard_normal(size, dtype=np.float32)
  walk = rng.standard_normal(size, dtype=np.float32)
  logits = np.empty_like(fixed)
  for c in range(num_checkpoints):
    epoch = (c + 1) / num_checkpoints
    walk *= np.float32(0.9)
    walk += np.float32(0.44) * rng.standard_normal(size, dtype=np.float32)
    np.add(fixed, walk, out=logits)
    logits[each, labels] += learning * (1 - np.exp(-4 * epoch))
    logits[each, mistakes] += forgetting * epoch**2
    logits *= np.float32(1 + epoch)  # confidence grows all along
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    out[c] = logits


def _measure_fusion(
  rule: str, path: str, labels: np.ndarray, case: HistoryCase
) -> dict[str, Any]:
  """Times one rule, and watches its memory meanwhile."""
  probs = np.load(path, mmap_mode="r" if case.mapped else None)
  run = getattr(fusion, rule)
  seconds = []
  with MemoryWatch() as memory:
    for _ in range(case.repeats + 1):
      start = time.perf_counter()
      result = run(probs, labels)
      seconds.append(time.perf_counter() - start)
  weights = getattr(result, "weights", result)
  fused = fusion.fuse(probs, weights)
  accuracy = float(np.mean(fused.argmax(axis=1) == labels))
  final = np.asarray(probs[-1], np.float32).argmax(axis=1)
  gap = None
  if rule == "mixture_fusion":
    likelihoods = fusion.label_likelihoods(probs, labels)
    gap = float(fusion.mixture_gap(likelihoods, weights))
  return {
    "name": rule,
    "shape": list(case.shape),
    "dtype": case.dtype,
    "array_mib": probs.nbytes / 2**20,
    "seconds": statistics.median(seconds[1:] or seconds),
    "first_seconds": seconds[0],
    **memory.summary(),
    "num_windows": len(result.members) if weights is not result else None,
    "num_members": int(np.count_nonzero(weights)),
    "accuracy": accuracy,
    "gain": accuracy - float(np.mean(final == labels)),
    "gap": gap,
  }
