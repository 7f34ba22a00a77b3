"""Files that are either whole or absent: atomic writes, JSON, digests.

Paths are `etils.epath` paths, so a working directory may be local or in a
bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from kfkd_jax import lock

_REMEDY = "remove it and run again"
_LABEL = "label.json"  # the part of an `.npz` that says what it is
_KINDS = {
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a named pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}


class NotAFileError(OSError):
  """Something else than a file stands where a file belongs."""


def check_is_file(path: epath.PathLike) -> None:
  """Refuses what is no ordinary file, unopened: a pipe may block for ever.

  Raises:
    NotAFileError: it is a folder, a pipe, a socket or a device.
    FileNotFoundError: there is nothing.
  """
  if "://" in os.fspath(path):
    return
  kind = stat.S_IFMT(os.stat(path).st_mode)
  if kind != stat.S_IFREG:
    found = _KINDS.get(kind, "something else")
    raise NotAFileError(f"{path} is {found} where a file belongs")


def read_bytes(path: epath.PathLike) -> bytes:
  """The content of an ordinary file, of whatever origin."""
  check_is_file(path)
  return epath.Path(path).read_bytes()


def exists(path: epath.Path) -> bool:
  """Whether there is something; what cannot be looked at is not absent."""
  return _mode(path) is not None


def is_folder(path: epath.Path) -> bool:
  """Whether there is a folder; what cannot be looked at is not absent."""
  mode = _mode(path)
  return mode is not None and stat.S_ISDIR(mode)


def is_file(path: epath.Path) -> bool:
  """Whether there is an ordinary file; for epath a pipe is one too."""
  mode = _mode(path)
  return mode is not None and stat.S_ISREG(mode)


def _mode(path: epath.Path) -> int | None:
  """None where nothing is; pathlib and epath say so of what is forbidden."""
  if "://" in os.fspath(path):
    kind = stat.S_IFDIR if path.is_dir() else stat.S_IFREG
    return kind if path.exists() else None
  try:
    return os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError):
    return None


def check_readable(folder: epath.Path) -> None:
  """Raises the `OSError` of what in a local folder cannot be read, if any.

  For what others report as damaged: only what was read is.
  """

  def refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
      raise error

  for parent, _, names in os.walk(folder, onerror=refuse):
    for path in (os.path.join(parent, name) for name in names):
      if os.path.isfile(path):
        with open(path, "rb") as f:
          f.read(1)


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes beside `path` and renames, so that no reader sees half a file.

  Raises:
    lock.LostError: another program may work in this one's folder.
  """
  with placed(path) as temporary:
    temporary.write_bytes(content)
    if epath.Path(path).is_dir():
      raise NotAFileError(f"{path} is a folder where a file belongs; {_REMEDY}")


@contextlib.contextmanager
def placed(path: epath.PathLike) -> Iterator[epath.Path]:
  """Yields where to write a file or folder, which becomes `path` if all went.

  Raises:
    lock.LostError: another program may work in this one's folder.
  """
  lock.check()
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  try:
    yield temporary
    temporary.replace(path)
  except BaseException:
    if temporary.is_dir():
      temporary.rmtree()
    else:
      temporary.unlink(missing_ok=True)
    raise


def write_text(path: epath.Path, content: str) -> None:
  """`write_bytes` for UTF-8 text."""
  write_bytes(path, content.encode())


def _read_own(path: epath.Path) -> bytes:
  try:
    return read_bytes(path)
  except NotAFileError as error:
    raise NotAFileError(f"{error}; {_REMEDY}") from None


def to_json(value: Any) -> str:
  """Readable JSON with sorted keys; NumPy numbers and arrays become plain."""
  return json.dumps(_plain(value), indent=1, sort_keys=True) + "\n"


def write_json(path: epath.Path, value: Any) -> None:
  """Writes `to_json(value)`."""
  write_text(path, to_json(value))


def read_json(
  path: epath.Path, expected: type | tuple[type, ...] = dict
) -> Any:
  """The object, or what else is `expected`, in a JSON file.

  An error names the file.
  """
  path = epath.Path(path)
  try:
    return _parsed(_read_own(path), expected)
  except ValueError as error:
    raise ValueError(f"{path} is damaged, {error}; {_REMEDY}") from error


_JSON: dict[Any, str] = {
  dict: "object",
  list: "list",
  (dict, list): "object or list",
}
_DEEPEST = 100  # what goes through such values recurses


def _parsed(content: bytes | str, expected: type | tuple[type, ...]) -> Any:
  try:
    value = json.loads(content)
  except RecursionError:
    raise ValueError(f"nested deeper than {_DEEPEST} levels") from None
  except ValueError as error:
    raise ValueError(f"not valid JSON ({error})") from error
  if not isinstance(value, expected):
    raise ValueError(
      f"holding {json.dumps(value)[:40]} where a JSON {_JSON[expected]} belongs"
    )
  level = [value]
  for _ in range(_DEEPEST):
    level = [
      child
      for parent in level
      if isinstance(parent, (dict, list))
      for child in (parent.values() if isinstance(parent, dict) else parent)
    ]
  if level:
    raise ValueError(f"nested deeper than {_DEEPEST} levels")
  return value


def write_json_lines(path: epath.Path, rows: Iterable[Mapping]) -> None:
  """One JSON object a line."""
  lines = [json.dumps(_plain(row), sort_keys=True) for row in rows]
  write_text(path, "".join(line + "\n" for line in lines))


def append_json_line(path: epath.Path, row: Mapping) -> None:
  """Adds one line to a JSON-lines file."""
  path, line = epath.Path(path), json.dumps(_plain(row), sort_keys=True) + "\n"
  if "://" in os.fspath(path):  # objects cannot be appended to
    before = path.read_bytes() if exists(path) else b""
    write_bytes(path, before + line.encode())
    return
  lock.check()
  if path.exists():
    check_is_file(path)
  with path.open("a") as f:
    f.write(line)


def read_json_lines(path: epath.Path) -> list[dict]:
  """The rows of a JSON-lines file; a line cut short at the end is left out."""
  rows = []
  lines = _read_own(epath.Path(path)).decode(errors="replace").split("\n")
  for number, line in enumerate(lines):
    if not line:
      continue
    try:
      rows.append(_parsed(line, dict))
    except ValueError as error:
      if number == len(lines) - 1:  # no newline: the writer was killed here
        break
      raise ValueError(
        f"{path} line {number + 1} is damaged; {_REMEDY}"
      ) from error
  return rows


def write_npz(
  path: epath.Path, label: Mapping[str, Any] | None = None, /, **arrays: Any
) -> None:
  """An uncompressed `.npz`; the zip format's checksums guard every part.

  Args:
    path: the file.
    label: what the file is; see `differences`.
    **arrays: by name.
  """
  for name, array in arrays.items():
    # NumPy before 2.1 would store its argument `allow_pickle` as an array.
    if np.asarray(array).dtype.hasobject:
      raise ValueError(f"{name} holds objects, which only a pickle could store")
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  if label:  # no array: it would be a third of the time of reading a small file
    with zipfile.ZipFile(buffer, "a") as archive:
      archive.writestr(zipfile.ZipInfo(_LABEL), json.dumps(label))
  write_bytes(path, buffer.getvalue())


def read_npz(
  path: epath.Path,
  names: Sequence[str] | None = None,
  *,
  label: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """The arrays `names`, or all, of an `.npz` that `write_npz` wrote.

  Checksums are verified, and that the file is what `label` says; an error names
  the file and says what to do.
  """
  path = epath.Path(path)
  content = _read_own(path)
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
      _check_distinct(archive.files)
      stored = names or [n for n in archive.files if n != _LABEL]
      arrays = {name: archive[name] for name in stored}
      # Files of earlier versions have none, and are what their name says.
      found = json.loads(archive[_LABEL]) if _LABEL in archive else {}
      wrong = differences(found, label or {})
  except Exception as error:
    raise ValueError(f"{path} is damaged ({error}); {_REMEDY}") from error
  if wrong:
    raise ValueError(f"{path} belongs elsewhere ({wrong}); {_REMEDY}")
  return arrays


class RefusedError(ValueError):
  """A file that could be read but is not: it asks for something unsafe."""


def read_foreign_npz(
  path: epath.Path, names: Sequence[str]
) -> dict[str, np.ndarray]:
  """The arrays `names`, where there, of an `.npz` that anybody may have made.

  What the file declares about them is checked before memory is taken for it,
  pickles are refused, and no other array is looked at.
  """
  wanted = f"all of {', '.join(names)} that there are"
  with _foreign_npz(path, wanted) as (archive, members):
    found = {name: members[name] for name in names if name in members}
    size = sum(_declared(archive, info).nbytes for info in found.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
      raise RefusedError(
        f"its arrays take {size / 2**30:.1f} GiB, more than this machine's "
        f"{memory / 2**30:.1f} GiB of memory"
      )
    arrays = {}
    for name, info in found.items():
      with archive.open(info) as member:
        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
  return arrays


class Declared(NamedTuple):
  """What a file says of an array in it."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def foreign_arrays(path: epath.Path) -> dict[str, Declared]:
  """What arrays an `.npz` that anybody may have made holds, in its order.

  Checked as `read_foreign_npz` does, and not read.
  """
  with _foreign_npz(path, "all arrays") as (archive, members):
    return {
      name: _declared(archive, info)
      for name, info in members.items()
      if info.filename.endswith(".npy")
    }


@contextlib.contextmanager
def _foreign_npz(
  path: epath.Path, wanted: str
) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
  """The archive and its members by name; whatever fails names the file."""
  path = epath.Path(path)
  check_is_file(path)
  with path.open("rb") as f:
    if f.read(6) == b"\x93NUMPY":
      raise RefusedError(
        f"{path} is a single array (.npy); put {wanted} into one file with "
        "numpy.savez"
      )
    try:
      with zipfile.ZipFile(f) as archive, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of headers it must mend
        named = [i.filename.removesuffix(".npy") for i in archive.filelist]
        _check_distinct(named)
        yield archive, dict(zip(named, archive.filelist, strict=True))
    except RefusedError as error:
      raise RefusedError(f"{path}: {error}") from None
    except Exception as error:  # zipfile alone raises ten kinds
      raise ValueError(
        f"{path} is damaged or not an .npz of numpy.savez: {error}"
      ) from error


def _check_distinct(names: Sequence[str]) -> None:
  twice = [name for name, count in Counter(names).items() if count > 1]
  if twice:
    raise RefusedError(f"it holds two arrays named {twice[0]!r}")


_HEADER_BYTES = 2**16
_MOST_DEFLATED = 1100  # the format itself cannot pack tighter


def _declared(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Declared:
  """An array by its header; an error if the archive disagrees."""
  name = info.filename
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise RefusedError(f"{name} is packed in a way that NumPy does not use")
  with archive.open(info) as member:
    start = io.BytesIO(member.read(_HEADER_BYTES))
  version = np.lib.format.read_magic(start)
  if version > (2, 0):
    raise RefusedError(f"{name} is no plain array (format {version})")
  read_header = (
    np.lib.format.read_array_header_1_0
    if version == (1, 0)
    else np.lib.format.read_array_header_2_0
  )
  shape, _, dtype = read_header(start)
  if dtype.hasobject:
    raise RefusedError(
      f"{name} holds Python objects (a pickle), which are never loaded; save "
      "an array of numbers"
    )
  declared = Declared(shape, dtype)
  size = declared.nbytes
  if min(shape, default=0) < 0 or start.tell() + size != info.file_size:
    raise RefusedError(
      f"{name} declares shape {shape} of {dtype}, which is not what the "
      "archive holds; the file is damaged"
    )
  if info.file_size > _MOST_DEFLATED * info.compress_size + _HEADER_BYTES:
    raise RefusedError(f"{name} declares {size} bytes, more than are there")
  return declared


def digest(value: Any) -> str:
  """A short hash of anything JSON can hold, or of bytes."""
  content = value if isinstance(value, bytes) else to_json(value).encode()
  return hashlib.sha256(content).hexdigest()[:16]


_DIGEST = "digest"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """`content` with a digest, which tells whether it was changed since."""
  return {**content, _DIGEST: digest(content)}


def unsealed(content: Any) -> dict[str, Any] | None:
  """What `sealed` was given; None where it is no longer that."""
  if not isinstance(content, dict):
    return None
  rest = {key: value for key, value in content.items() if key != _DIGEST}
  return rest if content.get(_DIGEST) == digest(rest) else None


def differences(label: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """What a file says it is but should not be; "" where it is what is wanted.

  A label says what a file is, such as a run's name and an epoch: sound sums
  alone would let one file stand in for another. Only what both name counts.
  """
  return ", ".join(
    f"{key} {label[key]}, not {wanted[key]}"
    for key in wanted
    if key in label and label[key] != wanted[key]
  )


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
