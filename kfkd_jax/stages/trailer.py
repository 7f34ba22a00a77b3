"""A digest at the end of a file, for formats whose readers look no further."""

from __future__ import annotations

import hashlib

# Names this package and the sum; 32 bytes of SHA-256 follow.
_MARK = b"kfkd_jax sha256:"
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
