"""Several working directories on one page."""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from etils import epath

from kfkd_jax import files, plots
from kfkd_jax.config import read_sealed
from kfkd_jax.report import page, tables
from kfkd_jax.report import run_page as report
from kfkd_jax.report.page import Drawn
from kfkd_jax.run import keeping, results

_NEEDS = ("config.json", "results.jsonl", "diagnosis.json")
_SWEEP_DEPTH = 3  # folders between a sweep and its working directories
_LONG = 200  # letters of a value that a table shows


class Run(NamedTuple):
  """A finished working directory.

  Attributes:
    name: the end of its path that tells it from the others.
    path: the directory.
    config: values by dotted key.
    methods: by slug, one row each: means over the folds.
    num_folds: halvings of the test set.
    diagnosis: as `diagnosis.json` has it.
    made_with: versions and device.
    cell: the sweep that it is a cell of and its point of the grid; None for
      none.
  """

  name: str
  path: epath.Path
  config: dict[str, Any]
  methods: dict[str, dict[str, Any]]
  num_folds: int
  diagnosis: dict[str, Any]
  made_with: dict[str, str]
  cell: tuple[epath.Path, tuple[str, ...]] | None = None


class Means(NamedTuple):
  """A point of a sweep's grid.

  Attributes:
    title: the point, and the sweep where there are several.
    seeds: those that are finished.
    rows: one a method, as `tables.summarise` has them.
  """

  title: str
  seeds: tuple[int, ...]
  rows: list[dict[str, Any]]


def run(directories: Sequence[str], output: str | None) -> str:
  """Writes a page on all directories; returns where it is and what to heed.

  Args:
    directories: working directories, and sweeps for those within.
    output: folder of the page, `figures/` and `tables/`; None: `kfkd-report`.
  """
  folder = epath.Path(output or "kfkd-report")
  if folder.suffix or folder.is_file():
    raise ValueError(
      f"report: --output={output} must be a folder, for index.html and what "
      "lies beside it"
    )
  runs, path = read(directories), folder / "index.html"
  size = page.write(render(runs), path).size
  lines = [f"report: {len(runs)} runs on {path}, {size}"]
  return "\n".join(lines + [f"note: {caution}" for caution in cautions(runs)])


def read(directories: Sequence[str]) -> list[Run]:
  """Every working directory in or under `directories`, in order.

  Raises:
    ValueError: one of them holds no results, or they are damaged.
  """
  paths: list[epath.Path] = []
  sweeps: list[epath.Path] = []
  for path in map(epath.Path, directories):
    if not path.is_dir():
      raise ValueError(f"report: there is no directory {path}")
    found = list(_finished(path, _SWEEP_DEPTH))  # itself, or those of a sweep
    if not found:
      raise ValueError(
        f"report: {path} has no results; run `kfkd run --workdir={path}` first"
      )
    paths += found
    sweeps += [path] * len(found)
  real = [os.path.realpath(path) for path in paths]
  for place, path in enumerate(real):
    if path in real[:place]:
      raise ValueError(f"report: {paths[place]} is given twice")
  return [
    _read(path, name, _cell(sweep, path))
    for sweep, path, name in zip(sweeps, paths, _names(real))
  ]


def _cell(sweep, path) -> tuple[epath.Path, tuple[str, ...]] | None:
  """Whose cell a working directory below `sweep` is, by its folders' names."""
  *point, seed = path.relative_to(sweep).parts or ("",)
  if not seed.startswith("seed-") or not all("=" in part for part in point):
    return None
  return sweep, tuple(map(keeping.of_folder, point))


def _finished(path: epath.Path, depth: int) -> Iterator[epath.Path]:
  if (path / "results.jsonl").exists():
    yield path
  elif depth:
    folders = [
      p
      for p in path.iterdir()
      if p.is_dir() and p.name[0] != "." and p.name != keeping.ASIDE
    ]
    for folder in sorted(folders, key=_counting):
      # A grid may have any number of axes.
      yield from _finished(folder, depth - ("=" not in folder.name))


def _counting(path: epath.Path) -> list[Any]:
  """Sorts seed-10 after seed-9, and 0.4 after 0.05."""
  parts = re.split(r"(\d+(?:\.\d+)?)", path.name)  # every other is a number
  return [float(p) if number % 2 else p for number, p in enumerate(parts)]


def _names(paths: Sequence[str]) -> list[str]:
  """The shortest ends of the paths that differ."""
  parts = [path.strip("/").split("/") for path in paths]
  names: list[str] = []
  for length in range(1, max(map(len, parts), default=0) + 1):
    names = ["/".join(p[-length:]) for p in parts]
    if len(set(names)) == len(names):
      break
  return names


def _read(path: epath.Path, name: str, cell) -> Run:
  for needed in (*_NEEDS, *([] if cell is None else ["hits.npz"])):
    if not (path / needed).exists():
      raise ValueError(
        f"report: {path} has no {needed}; run `kfkd run --workdir={path}` first"
      )
  rows = files.read_json_lines(path / "results.jsonl")
  diagnosis = files.read_json(path / "diagnosis.json")
  try:
    methods = _methods(rows)
    test = diagnosis["splits"]["test"]
    _ = methods["final"], test["accuracy"], test["forget"], diagnosis["epochs"]
    return Run(
      name=name,
      path=path,
      config=dict(_flat(read_sealed(path / "config.json"))),
      methods=methods,
      num_folds=len({row["split"] for row in rows}),
      diagnosis=diagnosis,
      made_with={"device": rows[0]["device_kind"], **rows[0]["versions"]},
      cell=cell,
    )
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f"report: {path} holds results that cannot be read "
      f"({type(error).__name__}: {error}); run `kfkd run --workdir={path}`"
    ) from error


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple]:
  for key, value in config.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


_AVERAGED = (
  "accuracy", "gain", "nll", "ece", "brier",
  "train_cost", "inference_cost", "storage_cost",
)  # fmt: skip


def _methods(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """One row a method: its own with one fold, else means without intervals."""
  found = {}
  for method in dict.fromkeys(row["method"] for row in rows):
    folds = [row for row in rows if row["method"] == method]
    mean = {key: fmean(row[key] for row in folds) for key in _AVERAGED}
    one = folds[0] if len(folds) == 1 else {}
    intervals = {
      key: one.get(key) for key in ("accuracy_interval", "gain_interval")
    }
    found[method] = {
      **mean, **intervals, "method": method, "split": folds[0]["split"],
      "num_examples": folds[0]["num_examples"],
    }  # fmt: skip
  return found


def means(runs: Sequence[Run]) -> list[Means]:
  """What the seeds of every grid point have in common, sweep by sweep."""
  cells: dict[tuple, list[Run]] = {}
  for run in runs:
    if run.cell is not None:
      cells.setdefault(run.cell, []).append(run)
  sweeps = list(dict.fromkeys(sweep for sweep, _ in cells))
  names = dict(zip(sweeps, _names([os.path.realpath(s) for s in sweeps])))
  found = []
  for (sweep, point), group in cells.items():
    config = group[0].config
    try:
      rows = tables.summarise(
        [
          tables.Run(
            files.read_json_lines(run.path / "results.jsonl"),
            results.read_hits(run.path),
          )
          for run in group
        ],
        num_samples=config["compare.bootstrap_samples"],
        level=config["compare.level"],
      )
    except ValueError as error:
      raise ValueError(f"report: {sweep}: {error}") from error
    title = ", ".join(point) or names[sweep]
    if point and len(sweeps) > 1:
      title = f"{names[sweep]}: {title}"
    seeds = tuple(run.config["seed"] for run in group)
    found.append(Means(title, seeds, rows))
  return found


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Keys whose values differ, and what makes them: one text a run."""
  found = {}
  for values in ([r.config for r in runs], [r.made_with for r in runs]):
    for key in dict.fromkeys(key for value in values for key in value):
      texts = [_text(value, key) for value in values]
      if len(set(texts)) > 1:
        found[key] = texts
  return found


def _text(values: dict[str, Any], key: str) -> str:
  if key not in values:
    return "not there"
  value = values[key]
  if value is None:
    return "default"
  text = value if isinstance(value, str) else json.dumps(value)
  return plots.short(text, _LONG)


def cautions(runs: Sequence[Run]) -> list[str]:
  """What makes numbers of different runs hard to compare."""
  found = []
  data = [(r.config.get("data.name"), r.diagnosis["class_names"]) for r in runs]
  points = [
    (
      r.config.get("selection.source"),
      r.num_folds,
      r.methods["final"]["num_examples"],
    )
    for r in runs
  ]
  if any(d != data[0] for d in data):
    names = ", ".join(f"{r.name}: {d[0]}" for r, d in zip(runs, data))
    found.append(
      f"these runs are on different data ({names}); compare methods within a "
      "run, not one run with another"
    )
  elif any(p != points[0] for p in points):
    names = ", ".join(f"{r.name}: {p[2]}" for r, p in zip(runs, points))
    found.append(
      f"these runs are scored on different test points ({names}); small "
      "differences between runs may come from that"
    )
  folded = [r.name for r in runs if r.num_folds > 1]
  if folded:
    found.append(
      f"numbers of {', '.join(folded)} are means over halvings of the test "
      "set, and have no intervals here"
    )
  return found


def render(runs: Sequence[Run]) -> page.Page:
  """The page."""
  methods = list(dict.fromkeys(m for r in runs for m in r.methods))
  found = differences(runs)
  differing: list[dict[str, Any]] = [
    {"key": key, **{r.name: text for r, text in zip(runs, texts)}}
    for key, texts in found.items()
  ]
  keys = [key for key in report.RESULT_KEYS if key != "split"]
  numbers = [
    {"run": r.name, **page.flat(row, keys)}
    for r in runs
    for row in r.methods.values()
  ]
  # A table without rows would have no columns either.
  differing = differing or [{"key": "nothing differs"}]
  written = {"all-numbers": numbers, "differences": differing}
  points = means(runs)
  summaries: tables.Summaries = {(f"point={m.title}",): m.rows for m in points}
  shown = {point: tables.shown(rows) for point, rows in summaries.items()}
  if points:
    written["means"] = tables.flat(summaries)
  made = page.render(
    "overview.html",
    _figures(runs) | _mean_figure(points),
    written,
    runs=runs,
    means=list(zip(points, shown.values())),
    means_note=tables.note(summaries) if points else "",
    methods=methods,
    colors=[plots.css_color(plots.look(n).color) for n in range(len(runs))],
    differences=found,
    cautions=cautions(runs),
  )
  return made._replace(shown={"means": tables.flat(shown)} if points else {})


def _mean_figure(points: Sequence[Means]) -> dict[str, Drawn]:
  if not points:
    return {}
  found = {
    m.title: [
      {**row, "gain_interval": (row["gain_low"], row["gain_high"])}
      for row in m.rows
    ]
    for m in points
  }
  label = (
    f"The mean gain of every method over seeds in {', '.join(found)}; the "
    "numbers are in the tables."
  )
  return {"mean-gain": Drawn(plots.plot_methods_compared(found), label)}


def _figures(runs: Sequence[Run]) -> dict[str, Drawn]:
  found = {r.name: list(r.methods.values()) for r in runs}
  names = ", ".join(found)
  figures = {}
  for value in ("gain", "accuracy"):
    figures[value] = Drawn(
      plots.plot_methods_compared(found, value=value),
      f"The {value} of every method in {names}; the numbers are in the table.",
    )
  for name, of, ylabel in (
    ("accuracy-curves", "accuracy", "test accuracy"),
    ("forgetting-curves", "forget", "Fₑ, share of test points"),
  ):
    curves = {
      r.name: (r.diagnosis["epochs"], r.diagnosis["splits"]["test"][of])
      for r in runs
    }
    ends = [f"{run} ends at {ys[-1]:.3f}" for run, (_, ys) in curves.items()]
    figures[name] = Drawn(
      plots.plot_curves_compared(curves, ylabel=ylabel),
      f"{ylabel} over the epochs: {', '.join(ends)}.",
    )
  return figures
