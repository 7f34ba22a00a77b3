"""What took long is kept: not replaced unasked, set aside, freed on request."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import files, lock
from kfkd_jax.run import forecast, progress, results
from kfkd_jax.run.workspace import Workspace

_CONFIG = "config.json"
_COPY = f"runs/{_CONFIG}"  # should the first be lost
ASIDE = "aside"
_MOST_SHOWN = 4  # keys or runs in a line


def write_config(space: Workspace) -> None:
  """Notes what a working directory is continued with, twice."""
  content = config_lib.sealed(space.config).encode()
  for path in (space.path / _CONFIG, space.path / _COPY):
    if not files.exists(path) or files.read_bytes(path) != content:
      files.write_bytes(path, content)


def configuration(workdir: epath.Path) -> epath.Path | None:
  """The file that a working directory is continued with; None for a new one.

  Raises:
    ConfigError: it holds runs, and nothing says what they are of.
  """
  saved, copy = workdir / _CONFIG, workdir / _COPY
  if content_of(saved) is not None:
    return saved
  if files.unsealed(content_of(copy)) is not None:
    return copy
  runs = workdir / "runs"
  if files.exists(workdir / "manifest.json") or (
    files.is_folder(runs) and any(runs.iterdir())
  ):
    raise config_lib.ConfigError(refusal_without_config(saved))
  return saved if files.exists(saved) else None


def content_of(path: epath.Path) -> Any:
  """What a JSON file holds; None where it is lost or cut short."""
  try:
    return files.read_json(path)
  except (FileNotFoundError, IsADirectoryError, ValueError):
    return None


def refusal_without_config(saved: epath.Path) -> str:
  """What to do where the configuration of finished runs is lost."""
  return (
    f"{saved} is lost or damaged, and {saved.parent} holds runs, which are not "
    "trained over with another configuration; name theirs by --config=FILE.py"
    "[:ARGS] (--config=default if there was none) and every --config.KEY=VALUE "
    "that it was begun with, or choose another --workdir"
  )


def refusal(
  space: Workspace,
  runs: Sequence[str],
  stages: Sequence[str],
) -> str:
  """Says which runs would be replaced, by which changes, and the ways on.

  Args:
    space: what was asked for, and where.
    runs: their names.
    stages: that make them.
  """
  changes = _shortened(_changes(space, stages))
  cause = changes or "another configuration or version"
  trained = [
    _described(space.path, name)
    for name in runs
    if files.exists(results.run_path(space.path, name) / "metrics.jsonl")
  ]
  shown = _shortened(trained or list(runs))
  return (
    f"{cause} would train again what is there in {space.path}: {shown}; give "
    "--workdir=NEW to keep it as it is, or --redo to set it aside first"
  )


def _shortened(parts: list[str]) -> str:
  left = len(parts) - _MOST_SHOWN
  more = [f"{left} more"] if left > 0 else []
  return ", ".join([*parts[:_MOST_SHOWN], *more])


def _changes(space: Workspace, stages) -> list[str]:
  """`KEY=OLD -> NEW` for what differs from the saved configuration."""
  with contextlib.suppress(ValueError):  # lost, or of another version
    before = config_lib.read(None, saved=configuration(space.path))
    deciding = {
      key.name
      for stage in stages
      for key in config_lib.keys_deciding(space.config, stage)
    }
    return [
      f"{name}={old} -> {new}"
      for name in [k.name for k in config_lib.KEYS if k.name in deciding]
      for old, new in [
        [config_lib.get(c, name) for c in (before, space.config)]
      ]
      if old != new
    ]
  return []


def _described(workdir, name) -> str:
  """A run with how long it is: `teacher (60 epochs, 3.1 h)`."""
  run = results.run_path(workdir, name)
  parts = []
  with contextlib.suppress(FileNotFoundError, ValueError, LookupError):
    epochs = files.read_json_lines(run / "metrics.jsonl")[-1]["epoch"]
    parts.append(f"{epochs:g} epochs")
  seconds = results.seconds(run)
  if seconds is not None:
    parts.append(progress.duration(seconds))
  return f"{name} ({', '.join(parts)})" if parts else name


def runs_with_work(workdir: epath.Path) -> list[str]:
  """Every run that has a checkpoint, the teacher first."""
  folder = workdir / "runs"
  runs = list(folder.iterdir()) if files.is_folder(folder) else []
  names = [
    run.name for run in runs if run.name[0] != "." and results.holds_work(run)
  ]
  return sorted(names, key=lambda name: (name != "teacher", name))


def to_folder(value: str) -> str:
  """`KEY=VALUE` as the name of a folder of a sweep."""
  return value.replace("%", "%25").replace("/", "%2F")


def of_folder(name: str) -> str:
  """What `to_folder` made a name of.

  >>> of_folder(to_folder("data.name=hf:100%25/a"))
  'data.name=hf:100%25/a'
  """
  return name.replace("%2F", "/").replace("%25", "%")


def cells_below(folder: epath.Path) -> Iterator[epath.Path]:
  """The working directories of a sweep's cells."""
  if not files.is_folder(folder):
    return
  for path in sorted(folder.iterdir()):
    if path.name.startswith("seed-"):
      yield path
    elif "=" in path.name:
      yield from cells_below(path)


def new_place(workdir: epath.Path) -> epath.Path:
  """Where to set aside what is replaced now."""
  now = datetime.datetime.now().isoformat(timespec="milliseconds")
  return workdir / ASIDE / now.replace(":", "-")


def set_aside(
  space: Workspace,
  runs: Sequence[str],
  place: epath.Path,
) -> None:
  """Moves runs to `place`, with what says and was found of them beside.

  The new configuration is noted before the first moves: if this is killed,
  what has stayed is refused to be replaced, not trained again.
  """
  for path in space.path.iterdir():
    copy = place / path.name
    if path.name[0] != "." and files.is_file(path) and not files.exists(copy):
      files.write_bytes(copy, path.read_bytes())
  write_config(space)
  (place / "runs").mkdir(parents=True, exist_ok=True)
  for name in (n for run in runs for n in (run, f"{run}_ema")):
    run = results.run_path(space.path, name)
    if files.exists(run):
      run.rename(place / "runs" / name)


# What `--redo` set aside, and what killed programs left half-made.
_LEFT = (
  f"{ASIDE}/*", f"{lock.NAME}.*", ".*.tmp", "*/.*.tmp",
  "runs/.*.discarded", "runs/*/.*.tmp", "runs/*/predictions/*/.*.tmp",
)  # fmt: skip


def clean(workdir: epath.Path, *, force: bool) -> str:
  """Lists what was set aside and left behind; with `force`, frees it."""
  if not files.is_folder(workdir):
    raise config_lib.ConfigError(f"--workdir: there is no folder {workdir}")
  lines, total = [], 0
  for folder in (workdir, *cells_below(workdir)):
    with lock.held(folder):
      found = (p for what in _LEFT for p in sorted(folder.glob(what)))
      for path in dict.fromkeys(found):  # some fit two patterns
        size = _size(path)
        total += size
        lines.append(f"{path}  {forecast.shown(size)}")
        if force:
          path.rmtree() if path.is_dir() else path.unlink()
      aside = folder / ASIDE
      if force and files.is_folder(aside) and not any(aside.iterdir()):
        aside.rmdir()
  if not lines:
    return f"nothing was set aside or left behind in {workdir}"
  end = "freed" if force else "in all; `kfkd clean --force` frees it for good"
  return "\n".join([*lines, f"{forecast.shown(total)} {end}"])


def _size(path: epath.Path) -> int:
  if path.is_dir():
    return forecast.used(path)
  if "://" in os.fspath(path):
    return len(path.read_bytes())
  return os.lstat(path).st_size  # of a link itself, not of what it points to
