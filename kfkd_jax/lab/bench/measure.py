"""How things are measured: in turns, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
  """Calls `function` where nothing was allocated before."""
  config: Any = jax.config  # its options are not known to type checkers
  cache = config.jax_compilation_cache_dir
  with concurrent.futures.ProcessPoolExecutor(
    1,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_use_cache,
    initargs=(cache,),
  ) as pool:
    return pool.submit(function, *args).result()


def _use_cache(directory: str | None) -> None:
  jax.config.update("jax_compilation_cache_dir", directory)


def in_turns(
  functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of every function in each round, after one call that compiles.

  The functions take turns, forwards and backwards, so that what else the
  machine does falls on all of them alike.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for number in range(rounds):
    names = list(functions)
    for name in names if number % 2 == 0 else reversed(names):
      start = time.perf_counter()
      jax.block_until_ready(functions[name]())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def typical(seconds: Sequence[float]) -> float:
  """The lower quartile: what it takes in the rounds that nothing disturbed."""
  return float(np.percentile(seconds, 25))


class MemoryWatch:
  """Follows this process's memory while a block runs (Linux only).

  The system keeps no peak of anonymous memory, so a thread looks every few
  milliseconds; an allocation shorter than that may go unseen.
  """

  def __enter__(self) -> MemoryWatch:
    self._start = self._peak = _resident_mib()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._follow)
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._done.set()
    self._thread.join()

  def _follow(self) -> None:
    while not self._done.wait(0.003):
      self._peak = {
        k: max(v, self._peak[k]) for k, v in _resident_mib().items()
      }

  def summary(self) -> dict[str, float | None]:
    """Returns the peaks in MiB, None where the system does not tell."""
    start, anon = (x.get("RssAnon") for x in (self._start, self._peak))
    return {
      "extra_anon_mib": None if start is None or anon is None else anon - start,
      "peak_anon_mib": anon,
      "peak_rss_mib": self._peak.get("VmRSS"),
    }


def _resident_mib() -> dict[str, float]:
  status = pathlib.Path("/proc/self/status")
  if not status.exists():
    return {}
  fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
  return {
    name: int(fields[name].split()[0]) / 1024
    for name in ("RssAnon", "VmRSS")
    if name in fields
  }


def row(
  name: str,
  reference: str,
  seconds: list[float],
  floor: list[float],
  count: int,
  *,
  limit: float | None = None,
) -> dict[str, Any]:
  """A line of the table: one thing done `count` times, and its ratio.

  Args:
    name: what was measured.
    reference: against what, in the same rounds.
    seconds: of each round.
    floor: of the reference.
    count: how often a round does it.
    limit: the ratio that was asked for.
  """
  return {
    "name": name,
    "reference": reference,
    "milliseconds": 1000 * typical(seconds) / count,
    "reference_milliseconds": 1000 * typical(floor) / count,
    "ratio": typical(seconds) / typical(floor),
    "limit": limit,
  }


def peak_flops(dtype: str, size: int | None = None) -> float:
  """Operations a second of this device's best matrix product."""
  sizes = (1024,) if jax.default_backend() == "cpu" else (4096, 8192)
  best = 0.0
  for n in (size,) if size else sizes:
    # Drawn, as some devices multiply equal numbers faster.
    a = jax.random.normal(jax.random.key(n), (n, n), dtype)
    product = functools.partial(jax.jit(jnp.matmul), a, a)
    seconds = in_turns({"product": product}, 5)
    best = max(best, 2 * n**3 / min(seconds["product"]))
  return best


def device_memory_mib() -> float | None:
  """The most that the first device held so far; None where it does not tell."""
  stats = jax.local_devices()[0].memory_stats()
  return None if not stats else stats["peak_bytes_in_use"] / 2**20
