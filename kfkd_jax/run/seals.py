"""Seals: short texts that change when what a stage left does.

A folder that a stage fills lists its files in `SHA256SUMS`, in the form that
`sha256sum --check` reads. What else lies there is not the stage's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from etils import epath

from kfkd_jax import files
from kfkd_jax.run import results

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: epath.Path, names: Iterable[str]) -> None:
  """Lists the files, and those in the folders, that `names` are of."""
  found: set[str] = set()
  for path in (folder / name for name in names):
    found |= {str(p.relative_to(folder)) for p in _files_of(path)}
  lines = [f"{_sum(folder / name)}  {name}\n" for name in sorted(found)]
  files.write_text(folder / SUMS, "".join(lines))


def _files_of(path: epath.Path) -> list[epath.Path]:
  """The file, or those of the folder at any depth; epath has no walk."""
  if not files.is_folder(path):
    return [path] if files.is_file(path) else []
  return [file for child in path.iterdir() for file in _files_of(child)]


def seal(path: epath.Path) -> str:
  """Of a file, a run, or a folder with `SHA256SUMS`."""
  if not files.exists(path):
    return "missing"
  if not files.is_folder(path):
    return files.digest(files.read_bytes(path))
  if not files.exists(path / SUMS):
    return results.seal(path)
  sums = files.digest(files.read_bytes(path / SUMS))
  return sums + "".join(changed(path))


def culprit(artefact: str, path: epath.Path) -> str:
  """The name to give for an artefact whose seal is broken."""
  found = changed(path) if (path / SUMS).exists() else []
  return f"{artefact}/{found[0]}" if found else artefact


def listed(folder: epath.Path) -> dict[str, str]:
  """The sums of the listed files by name; `SUMS` itself if that is damaged."""
  found = {}
  content = files.read_bytes(folder / SUMS).decode(errors="replace")
  for line in content.splitlines():
    match = _LINE.fullmatch(line)
    if match is None:
      return {SUMS: "damaged"}
    found[match[2]] = match[1]
  return found


def changed(folder: epath.Path) -> list[str]:
  """The listed files that are not what they were."""
  return [n for n, s in listed(folder).items() if _sum(folder / n) != s]


def _sum(path: epath.Path) -> str:
  if not files.is_file(path):
    return "missing"
  return hashlib.sha256(path.read_bytes()).hexdigest()
