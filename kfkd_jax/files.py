"""Files that are either whole or absent: atomic writes, JSON, digests.

Paths are `etils.epath` paths, so a working directory may be local or in a
bucket.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes beside `path` and renames, so that no reader sees half a file."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  temporary.write_bytes(content)
  temporary.replace(path)


def write_text(path: epath.Path, content: str) -> None:
  """`write_bytes` for UTF-8 text."""
  write_bytes(path, content.encode())


def to_json(value: Any) -> str:
  """Readable JSON with sorted keys; NumPy numbers and arrays become plain."""
  return json.dumps(_plain(value), indent=1, sort_keys=True) + "\n"


def write_json(path: epath.Path, value: Any) -> None:
  """Writes `to_json(value)`."""
  write_text(path, to_json(value))


def read_json(path: epath.Path) -> Any:
  """The value in a JSON file; an error names the file."""
  path = epath.Path(path)
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged, not valid JSON: {error}") from error


def write_json_lines(path: epath.Path, rows: Iterable[Mapping]) -> None:
  """One JSON object a line."""
  lines = [json.dumps(_plain(row), sort_keys=True) for row in rows]
  write_text(path, "".join(line + "\n" for line in lines))


def append_json_line(path: epath.Path, row: Mapping) -> None:
  """Adds one line to a JSON-lines file."""
  with epath.Path(path).open("a") as f:
    f.write(json.dumps(_plain(row), sort_keys=True) + "\n")


def read_json_lines(path: epath.Path) -> list[dict]:
  """The rows of a JSON-lines file; a line cut short at the end is left out."""
  rows = []
  lines = epath.Path(path).read_text().split("\n")
  for number, line in enumerate(lines):
    if not line:
      continue
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number == len(lines) - 1:  # no newline: the writer was killed here
        break
      raise ValueError(f"{path} line {number + 1} is damaged") from error
  return rows


def write_npz(path: epath.Path, **arrays: np.ndarray) -> None:
  """An uncompressed `.npz`; the zip format's checksums guard every array."""
  buffer = io.BytesIO()
  np.savez(buffer, allow_pickle=False, **arrays)
  write_bytes(path, buffer.getvalue())


def read_npz(path: epath.Path) -> dict[str, np.ndarray]:
  """The arrays of an `.npz`, checksums verified; an error names the file."""
  path = epath.Path(path)
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except FileNotFoundError:
    raise
  except Exception as error:
    raise ValueError(f"{path} is damaged or not an .npz: {error}") from error


def digest(value: Any) -> str:
  """A short hash of anything JSON can hold, or of bytes."""
  content = value if isinstance(value, bytes) else to_json(value).encode()
  return hashlib.sha256(content).hexdigest()[:16]


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return value.tolist()
  if hasattr(value, "__array__"):
    return np.asarray(value).tolist()
  return value
