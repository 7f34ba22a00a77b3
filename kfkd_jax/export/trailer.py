"""A digest at the end of a file, for formats whose readers look no further."""

from __future__ import annotations

import hashlib

_MARK = b"kfkd sha256 sum:"  # 32 bytes follow
_LENGTH = len(_MARK) + hashlib.sha256().digest_size


def appended(content: bytes) -> bytes:
  """`content` with a digest of itself at its end."""
  return content + _MARK + hashlib.sha256(content).digest()


def agrees(content: bytes) -> bool | None:
  """Whether `content` is what its trailer says; None where it has none.

  >>> agrees(appended(b"model")), agrees(appended(b"model")[1:]), agrees(b"")
  (True, False, None)
  """
  body, trailer = content[:-_LENGTH], content[-_LENGTH:]
  if not trailer.startswith(_MARK):
    return None
  return appended(body) == content
