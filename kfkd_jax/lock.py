"""One program at a time in a working directory.

The lock is a file that says who holds it. It appears by a hard link, which is
atomic on shared file systems too, and its holder keeps it locked with `flock`,
which the system gives up when the process dies: what is left behind is found
out without guessing from process numbers, that are used again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import stat
from collections.abc import Iterator

from etils import epath

NAME = ".lock"


class LockedError(ValueError):
  """Another program is at work; says which, and what to do."""


class LostError(LockedError):
  """The lock that this program held is gone, or another program's."""


@contextlib.contextmanager
def held(folder: epath.Path) -> Iterator[None]:
  """Holds the lock of a folder, which is made if it is not there.

  A folder in a bucket is not locked: nothing there can be created atomically.

  Args:
    folder: the working directory.

  Raises:
    LockedError: a program that runs holds it, or one on another host, of which
      it cannot be known.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if "://" in os.fspath(folder):
    yield
    return
  path = pathlib.Path(folder) / NAME
  descriptor = None
  while descriptor is None:
    descriptor = _create(path)
    if descriptor is None:
      descriptor = _take_over(path)
  _remove_leftovers(path)
  _held[path] = descriptor
  try:
    yield
  finally:
    del _held[path]
    if _is_ours(descriptor, path):
      path.unlink(missing_ok=True)
    os.close(descriptor)


_held: dict[pathlib.Path, int] = {}  # by this process, open


def check() -> None:
  """Raises a `LostError` where this program's locks are no longer there.

  Cheap, and asked before anything is written: without a lock another program
  may write the same files.
  """
  for path, descriptor in list(_held.items()):
    if not _is_ours(descriptor, path):
      raise LostError(
        f"{path} was removed or replaced while this program works in "
        f"{path.parent}; it stops, for another one may have begun there: run "
        "again once none is at work"
      )


def _is_ours(descriptor: int, path: pathlib.Path) -> bool:
  """Whether the lock is still the open file, or at least its like."""
  if _is_same(descriptor, path):
    return True
  # In a mounted bucket a renamed file becomes another one.
  return path.is_file() and path.read_bytes() == os.pread(descriptor, 4096, 0)


def _remove_leftovers(path: pathlib.Path) -> None:
  """Those of processes of this host that were killed in `_create`."""
  prefix = f"{NAME}.{socket.gethostname()}."
  for name in os.listdir(path.parent):
    process = name.removeprefix(prefix)
    if name.startswith(prefix) and process.isdecimal():
      try:
        os.kill(int(process), 0)
      except (ProcessLookupError, OverflowError):
        path.with_name(name).unlink(missing_ok=True)
      except PermissionError:
        pass  # it lives, as somebody else's


def _create(path: pathlib.Path) -> int | None:
  """Makes the lock file, held from its first instant; None if there is one."""
  temporary = path.with_name(f"{NAME}.{socket.gethostname()}.{os.getpid()}")
  descriptor = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
  try:
    _is_free(descriptor)
    _sign(descriptor)
    _link(temporary, path)
  except FileExistsError:
    os.close(descriptor)
    return None
  except BaseException:
    os.close(descriptor)
    raise
  finally:
    temporary.unlink(missing_ok=True)
  return descriptor


def _link(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Gives the file its name, unless there is one of that name."""
  try:
    os.link(temporary, path)
  except FileExistsError:
    raise
  except OSError:  # no hard links, such as in a mounted bucket
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
    os.replace(temporary, path)


def _take_over(path: pathlib.Path) -> int | None:
  """Takes what a dead process left; None if it is gone meanwhile."""
  try:
    if not stat.S_ISREG(path.lstat().st_mode):
      raise ValueError(f"{path} is no ordinary file; remove it")
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
  except FileNotFoundError:
    return None
  try:
    holder = _holder(descriptor)
    if holder.get("host") != socket.gethostname() or not _is_free(
      descriptor, holder.get("process")
    ):
      raise LockedError(_refusal(path, holder))
    if not _is_same(descriptor, path):  # let go and taken since it was opened
      os.close(descriptor)
      return None
    _sign(descriptor)
  except BaseException:
    os.close(descriptor)
    raise
  return descriptor


def _sign(descriptor: int) -> None:
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  holder = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
  os.truncate(descriptor, 0)
  os.pwrite(descriptor, json.dumps(holder).encode(), 0)
  os.fsync(descriptor)


def _holder(descriptor: int) -> dict:
  try:
    holder = json.loads(os.pread(descriptor, 4096, 0))
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _is_free(descriptor: int, process: int | None = None) -> bool:
  """Locks the open file, if nobody has."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # a file system that knows no locks: the number must do
    return not (process and pathlib.Path(f"/proc/{process}").exists())
  return True


def _is_same(descriptor: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), path.stat())
  except FileNotFoundError:
    return False


def _refusal(path: pathlib.Path, holder: dict) -> str:
  who = "process {process} on host {host}, since {since},".format_map(
    {"process": "?", "host": "?", "since": "?", **holder}
  )
  advice = "wait for it or choose another --workdir"
  if holder.get("host") != socket.gethostname():
    advice += f"; if it no longer runs there, remove {path}"
  return f"{who} is at work in {path.parent}; {advice}"
