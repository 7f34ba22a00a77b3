"""The whole run for a grid of configurations and several seeds.

A cell is a working directory of its own, `KEY=VALUE/.../seed-<n>/`. Any number
of `kfkd sweep` commands may share the work: whoever holds a cell's lock has it,
and a cell that is finished or held is passed over.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import jax
import ml_collections
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, lock, stages
from kfkd_jax.catalogue import METHODS
from kfkd_jax.lab import choosing
from kfkd_jax.report import page, tables, text
from kfkd_jax.run import keeping, progress, results
from kfkd_jax.run.workspace import Workspace

BASE = "base.json"  # the configuration that the grid varies
_NOTE = "sweep.json"
_ERROR = "error.txt"
_NUM_SEEDS = 5
_PATIENCE = 60.0  # seconds to wait while another command writes its note
# Keys that decide any of these may not differ between a sweep's commands.
_NUMBERS = {"train", "fuse", "distill", "rivals", "compare"}
# Axes along which the task varies, of which nobody may choose.
_TASK = ("data.", "selection.", "noise.kind", "noise.rate", "noise.field")


class Plan(NamedTuple):
  """What a sweep is made of.

  Attributes:
    axes: the grid; empty for seeds alone.
    seeds: ascending.
  """

  axes: tuple[config_lib.Axis, ...]
  seeds: tuple[int, ...]


class Cell(NamedTuple):
  """One working directory of a sweep.

  Attributes:
    point: `KEY=VALUE` for every axis.
    config: what it runs, its seed among it.
  """

  point: tuple[str, ...]
  config: ml_collections.ConfigDict

  @property
  def name(self) -> str:
    """Its folder below the sweep's."""
    folders = map(keeping.to_folder, self.point)
    return "/".join([*folders, f"seed-{self.config.seed}"])


class Outcome(NamedTuple):
  """What came of a command.

  Attributes:
    table: of all finished cells.
    failed: the error of each cell that failed, by name.
    busy: who holds each cell that another program is at work in, by name.
    finished: the cells that the command asked for and that are there now.
  """

  table: str
  failed: dict[str, str]
  busy: dict[str, str]
  finished: tuple[Cell, ...]


def configuration(workdir: epath.Path) -> epath.Path | None:
  """The file that a sweep is continued with; None for a new one.

  Where its own is lost, a cell's: it says the same, but for what is varied.

  Raises:
    ConfigError: there is a sweep, and nothing says of what.
  """
  found, base = _base_of(workdir), workdir / BASE
  if found is not None:
    return found
  if files.exists(workdir / _NOTE) or any(keeping.cells_below(workdir)):
    raise config_lib.ConfigError(keeping.refusal_without_config(base))
  return base if files.exists(base) else keeping.configuration(workdir)


def _base_of(workdir: epath.Path) -> epath.Path | None:
  base = workdir / BASE
  if keeping.content_of(base) is not None:
    return base
  for cell in keeping.cells_below(workdir):
    config = cell / "config.json"
    if files.unsealed(keeping.content_of(config)) is not None:
      return config
  return None


def run(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  *,
  num_seeds: int | None = None,
  grid: Sequence[str] = (),
  against: str = "final",
) -> Outcome:
  """Runs every cell that is neither finished nor held; writes the tables.

  Args:
    config: what the cells have in common.
    workdir: of the sweep.
    num_seeds: seeds 0, 1, ...; None for those of the sweep so far, or five.
    grid: `KEY=VALUE,VALUE` an axis; empty for the grid of the sweep so far.
    against: the method that gains are over.
  """
  workdir = epath.Path(workdir)
  wanted, noted = _agree(config, workdir, num_seeds, grid)
  every = cells = list(_cells(config, wanted))
  old_errors = {cell.name: _error_of(workdir, cell) for cell in cells}
  failed: dict[str, str] = {}
  busy: dict[str, str] = {}
  watch = _Watch(workdir, cells)
  while cells:
    busy = {}
    for cell in cells:
      error = _error_of(workdir, cell)
      if error is None or error == old_errors[cell.name]:
        # Else it failed just now, under another command of this sweep.
        try:
          error = _run_cell(cell, workdir / cell.name, watch)
        except lock.LockedError as held:
          busy[cell.name] = str(held)
          continue
      if error is not None:
        failed[cell.name] = error.splitlines()[0]
    if len(busy) == len(cells):
      break
    cells = [cell for cell in cells if cell.name in busy]
  table = _write_tables(config, workdir, noted, against)
  finished = [c for c in every if not {c.name} & {*failed, *busy}]
  return Outcome(table, failed, busy, tuple(finished))


def read_table(
  config: ml_collections.ConfigDict, workdir: epath.Path, *, against: str
) -> str:
  """The table of the cells that are finished; runs nothing."""
  workdir = epath.Path(workdir)
  noted = _begun(workdir)
  _check_same_base(config, workdir, noted)
  return _write_tables(config, workdir, noted, against)


def check_choice(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  method: str,
  grid: Sequence[str] = (),
) -> None:
  """Refuses a method that can choose nothing, and a grid without a choice."""
  if method == "final":
    raise config_lib.ConfigError(
      "--choose=final is said beside any method; name one such as mixture"
    )
  if method not in METHODS:
    raise config_lib.ConfigError(
      f"--choose={method!r} is no method; there are "
      f"{', '.join(m for m in METHODS if m != 'final')}"
    )
  noted = _noted(epath.Path(workdir))
  axes = config_lib.parse_grid(grid, config) or (noted.axes if noted else ())
  if all(axis.key.startswith(_TASK) for axis in axes):
    varied = ", ".join(axis.key for axis in axes) or "the seed"
    raise config_lib.ConfigError(
      f"--choose={method} needs a --grid to choose from, such as "
      f"train.epochs=30,60; the sweep in {workdir} varies {varied} alone"
    )


def choice(
  config: ml_collections.ConfigDict, workdir: epath.Path, method: str
) -> str:
  """What a method and the final network choose of the grid, task by task."""
  workdir = epath.Path(workdir)
  noted = _begun(workdir)
  check_choice(config, workdir, method)
  tasks: dict[
    tuple[str, ...], dict[tuple[str, ...], dict[int, choosing.Finished]]
  ] = {}
  for cell, run in _finished(config, workdir, noted):
    fused = files.read_json(workdir / cell.name / "fusion.json")
    selecting = choosing.selecting_accuracy(run.rows, fused)
    if method not in selecting:
      raise config_lib.ConfigError(
        f"--choose={method!r} has no accuracy on the selecting points in "
        f"{cell.name}; there are {', '.join(selecting)}"
      )
    task = tuple(part for part in cell.point if part.startswith(_TASK))
    own = tuple(part for part in cell.point if part not in task)
    seeds = tasks.setdefault(task, {}).setdefault(own, {})
    seeds[cell.config.seed] = choosing.Finished(run, selecting)
  if not tasks:
    raise config_lib.ConfigError(
      f"--choose={method}: no cell of the sweep in {workdir} is finished yet"
    )
  parts = []
  for task, points in tasks.items():
    said = choosing.compare(
      points,
      method,
      num_samples=config.compare.bootstrap_samples,
      level=config.compare.level,
    )
    title = ", ".join(("chosen on the selecting points", *task))
    parts.append(f"### {text.to_markdown(title)}\n\n{said}")
  return "\n\n".join(parts)


def _finished(
  config: ml_collections.ConfigDict, workdir: epath.Path, plan: Plan
) -> Iterator[tuple[Cell, tables.Run]]:
  """The cells that are finished, and what they scored."""
  for cell in _cells(config, plan):
    folder = workdir / cell.name
    if stages.is_up_to_date(Workspace(cell.config, folder), "compare"):
      rows = files.read_json_lines(folder / "results.jsonl")
      yield cell, tables.Run(rows, results.read_hits(folder))


class _Watch:
  """Says which cell a command is at, and how long the others will take."""

  def __init__(self, workdir: epath.Path, cells: Sequence[Cell]):
    self._workdir = workdir
    self._places = {cell.name: n for n, cell in enumerate(cells, 1)}
    self._left = {cell.name: cell for cell in cells}
    self._seconds: list[float] = []  # of each cell that this command ran

  def is_finished(self, cell: Cell) -> bool:
    """Whether a cell is there, whoever ran it."""
    space = Workspace(cell.config, self._workdir / cell.name)
    if all(stages.is_up_to_date(space, stage) for stage in stages.STAGES):
      self._left.pop(cell.name, None)
      return True
    return False

  def voice(self, cell: Cell) -> Callable[[str], None]:
    """What tells of a cell; its first line says which one it is."""
    # Not before: only who holds a cell's lock has anything to tell of it.
    head = [f"cell {self._places[cell.name]} of {len(self._places)}: "]

    def say(line: str) -> None:
      while head:
        print(f"{head.pop()}{cell.name}", flush=True)
      print(f"[{cell.name}] {line}", flush=True)

    return say

  def finish(self, cell: Cell, seconds: float) -> str:
    """How long a cell took, and about how long the rest will."""
    self._seconds.append(seconds)
    self.drop(cell)
    for other in [*self._left.values()]:
      self.is_finished(other)
    took, left = f"done in {progress.duration(seconds)}", len(self._left)
    if not left:
      return f"{took}; no cell is left"
    # Theirs are half done on average, which counting heads allows for.
    held = sum(
      files.exists(self._workdir / name / lock.NAME) for name in self._left
    )
    rest = fmean(self._seconds) * left / (1 + held)
    cells = f"{left} {'cell' if left == 1 else 'cells'} left"
    if held:
      cells += f", {held} of them under way elsewhere"
    return f"{took}; {cells}, {progress.about(rest)}"

  def drop(self, cell: Cell) -> None:
    """No longer counts a cell among those that are left."""
    self._left.pop(cell.name, None)


def _run_cell(cell: Cell, folder: epath.Path, watch: _Watch) -> str | None:
  """Runs a cell unless it is finished; returns why it failed, if it did."""
  note, say = folder / _ERROR, watch.voice(cell)
  try:
    if not watch.is_finished(cell):
      started = time.perf_counter()
      if stages.run(cell.config, folder, say=say):
        say(watch.finish(cell, time.perf_counter() - started))
      # What was compiled serves no other cell, and of many fills the memory.
      jax.clear_caches()
  except lock.LockedError:
    raise
  except Exception as error:
    # Whatever it was, the other cells can still be run.
    line = " ".join(str(error).split()) or type(error).__name__
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    content = f"{line}\n\n{now} (run {time.time_ns()})\n"
    files.write_text(note, content + traceback.format_exc())
    watch.drop(cell)
    say(f"failed: {line}")
    return line
  note.unlink(missing_ok=True)
  return None


def _error_of(workdir: epath.Path, cell: Cell) -> str | None:
  note = workdir / cell.name / _ERROR
  try:
    return files.read_bytes(note).decode()
  except FileNotFoundError:
    return None


def _cells(config: ml_collections.ConfigDict, plan: Plan) -> Iterator[Cell]:
  """All cells, every grid point with one seed before any has its second."""
  keys = [axis.key for axis in plan.axes]
  for seed in plan.seeds:
    for values in itertools.product(*(axis.values for axis in plan.axes)):
      changes = dict(zip(keys, values, strict=True))
      own = config_lib.changed(config, {**changes, "seed": seed})
      point = tuple(f"{key}={value}" for key, value in changes.items())
      yield Cell(point, own)


def _agree(config, workdir, num_seeds, grid) -> tuple[Plan, Plan]:
  """Notes what is wanted beside what was so far; returns both.

  Nothing is written where a configuration cannot work, or where the sweep so
  far has another base or other axes.
  """
  if num_seeds is not None and num_seeds < 1:
    raise config_lib.ConfigError("--seeds must be at least 1")
  axes = config_lib.parse_grid(grid, config)
  seeds = tuple(range(num_seeds or _NUM_SEEDS))
  for _ in _cells(config, Plan(axes, seeds[:1])):
    pass
  with _briefly_held(workdir):
    noted = _noted(workdir)
    begun = noted is not None
    if noted is None:
      _check_grid_named(workdir, axes)
      wanted = noted = Plan(axes, seeds)
    else:
      _check_same_base(config, workdir, noted)
      wanted = Plan(
        _in_order(axes, workdir, noted) if axes else noted.axes,
        noted.seeds if num_seeds is None else seeds,
      )
      noted = _united(noted, wanted)
    if not begun or keeping.content_of(workdir / BASE) is None:
      files.write_text(workdir / BASE, config_lib.sealed(config))
    files.write_json(workdir / _NOTE, noted._asdict())
  return wanted, noted


@contextlib.contextmanager
def _briefly_held(workdir: epath.Path) -> Iterator[None]:
  """Holds the sweep's own lock, which no command keeps for long."""
  until = time.monotonic() + _PATIENCE
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(lock.held(workdir))
        break
      except lock.LockedError:
        if time.monotonic() > until:
          raise
        time.sleep(0.05)
    yield


def _noted(workdir: epath.Path) -> Plan | None:
  """What the sweep is made of so far; None where there is none."""
  note = workdir / _NOTE
  if not files.exists(note):
    return None
  content = files.read_json(note)
  try:
    axes = [config_lib.Axis(key, tuple(v)) for key, v in content["axes"]]
    return Plan(tuple(axes), tuple(map(int, content["seeds"])))
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{note} is damaged; remove it and run again: what is finished stays"
    ) from error


def _begun(workdir: epath.Path) -> Plan:
  """What the sweep is made of so far, of which there must be one."""
  noted = _noted(workdir)
  if noted is None:
    raise ValueError(f"{workdir} holds no sweep; `kfkd sweep` begins one")
  return noted


def _check_grid_named(workdir: epath.Path, axes) -> None:
  """Refuses a sweep of seeds alone where the note of a larger one is lost."""
  inner = [c for c in keeping.cells_below(workdir) if "=" in c.parent.name]
  if inner and not axes:
    raise config_lib.ConfigError(
      f"{workdir / _NOTE} is lost; give every --grid that the sweep had, of "
      f"which there is {inner[0]}"
    )


def _check_same_base(config, workdir: epath.Path, noted: Plan) -> None:
  found = _base_of(workdir)
  if found is None:
    return  # lost, and named anew
  base = config_lib.read(None, saved=found)
  varied = [axis.key for axis in noted.axes]
  for key in config_lib.KEYS:
    if key.name in ("seed", *varied) or not _NUMBERS & set(key.decides):
      continue
    ours, theirs = (config_lib.get(c, key.name) for c in (config, base))
    if ours != theirs:
      raise config_lib.ConfigError(
        f"the sweep in {workdir} was begun with {key.name}={theirs!r}, not "
        f"{ours!r}; choose another --workdir, or vary the key by --grid in one"
      )


def _in_order(axes, workdir, noted: Plan) -> tuple[config_lib.Axis, ...]:
  """The axes in the order of the sweep so far, which must have the same."""
  ours = {axis.key: axis for axis in axes}
  theirs = [axis.key for axis in noted.axes]
  if set(ours) != set(theirs):
    raise config_lib.ConfigError(
      f"the sweep in {workdir} varies {', '.join(theirs) or 'the seed alone'}, "
      f"not {', '.join(ours)}; choose another --workdir"
    )
  return tuple(ours[key] for key in theirs)


def _united(noted: Plan, wanted: Plan) -> Plan:
  axes = [
    config_lib.Axis(old.key, tuple(dict.fromkeys(old.values + new.values)))
    for old, new in zip(noted.axes, wanted.axes, strict=True)
  ]
  return Plan(tuple(axes), tuple(sorted({*noted.seeds, *wanted.seeds})))


def _write_tables(config, workdir, plan: Plan, against: str) -> str:
  """Summarises the finished cells; writes them as a table's files."""
  points: dict[tuple[str, ...], list[tables.Run]] = {
    cell.point: [] for cell in _cells(config, plan)
  }
  for cell, run in _finished(config, workdir, plan):
    points[cell.point].append(run)
  summaries = {
    point: tables.summarise(
      runs,
      against=against,
      num_samples=config.compare.bootstrap_samples,
      level=config.compare.level,
    )
    for point, runs in points.items()
    if runs
  }
  name = "table" if against == "final" else f"table-against-{against}"
  table = tables.markdown(summaries, num_seeds=len(plan.seeds))
  if summaries:
    shown = {point: tables.shown(rows) for point, rows in summaries.items()}
    found = page.table_files(name, tables.flat(summaries), tables.flat(shown))
    # In a text every point has a table of its own.
    for file, content in (
      found | {f"{name}.md": f"{table}\n".encode()}
    ).items():
      files.write_bytes(workdir / file, content)
  return table
