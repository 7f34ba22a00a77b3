"""The Hugging Face Hub, and how to fetch a model from it.

The package `huggingface_hub` speaks to it, to where HF_ENDPOINT says, with the
token that it finds.
"""

from __future__ import annotations

import contextlib
import re
import sys
import types
from collections.abc import Iterator

# What a model is, its weights, and what it scored.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "card.json"
REMEDIES = {
  401: "log in with `hf auth login`, or set HF_TOKEN",
  403: "the token may not do that there",
  404: "there is no such repository or revision, or it is private",
}
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def library(who: str) -> types.ModuleType:
  """`huggingface_hub`, without its bars where nobody watches.

  Args:
    who: needs it, for the error.
  """
  try:
    import huggingface_hub
    from huggingface_hub import utils
  except ImportError as error:
    raise ValueError(
      f"{who} needs the package huggingface_hub: pip install 'kfkd-jax[hub]'"
    ) from error
  if not sys.stderr.isatty():
    utils.disable_progress_bars()
  return huggingface_hub


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
  """Raises whatever goes wrong, of several packages' kinds, as a `ValueError`.

  With a remedy, where the Hub's answer has one.
  """
  try:
    yield
  except Exception as error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = next(iter(str(error).splitlines()), type(error).__name__).strip(" .")
    remedy = f"; {REMEDIES[status]}" if status in REMEDIES else ""
    raise ValueError(f"{what}: {line}{remedy}") from error


def download(repo: str, revision: str | None) -> str:
  """The folder with the model of a repository, in the cache of the library."""
  if not _NAME.fullmatch(repo):
    raise ValueError(
      f"{repo!r} is neither a folder nor OWNER/NAME on the Hugging Face Hub"
    )
  found = library(f"{repo}, which is no folder,")
  with in_one_line(f"{repo} cannot be fetched"):
    return found.snapshot_download(
      repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]
    )
