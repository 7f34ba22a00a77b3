"""The Hugging Face Hub, and a model from there or from a folder like it.

The package `huggingface_hub` speaks to it, to where HF_ENDPOINT says, with the
token that it finds.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from etils import epath

from kfkd_jax import extras

if TYPE_CHECKING:
  from kfkd_jax.export import pretrained

REMEDIES = {
  401: "log in with `hf auth login`, or set HF_TOKEN",
  403: "the token may not do that there",
  404: "there is no such repository or revision, or it is private",
}
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def library() -> types.ModuleType:
  """`huggingface_hub`, without its bars where nobody watches."""
  with extras.named():
    import huggingface_hub
    from huggingface_hub import utils
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


def from_pretrained(
  source: str | os.PathLike, *, revision: str | None = None
) -> pretrained.Pretrained:
  """Returns a network that `kfkd export` wrote, ready to predict.

  >>> model = from_pretrained("kfkd-workdir/export")  # doctest: +SKIP
  >>> probs = model.predict("pictures/")  # doctest: +SKIP
  >>> model.class_names[probs[0].argmax()]  # doctest: +SKIP

  Args:
    source: a folder, or `OWNER/NAME` of a model on the Hugging Face Hub, which
      is kept in the cache of `huggingface_hub`.
    revision: of the repository: a branch, a tag or a commit.

  Returns:
    A `Pretrained`: `predict` gives probabilities [N, K]; `apply_fn`,
    `variables` (a pytree), `class_names`, `config` and `card` are there to go
    on with.
  """
  # Here, since the package's own door opens without Flax.
  with extras.named():
    from kfkd_jax.export import pretrained

  name, folder = os.fspath(source), epath.Path(source)
  if not folder.is_dir():
    wanted = (pretrained.CONFIG, pretrained.WEIGHTS, pretrained.CARD)
    folder = epath.Path(_download(name, revision, wanted))
  elif revision is not None:
    raise ValueError(
      f"revision={revision!r} goes with OWNER/NAME on the Hub; {name} is a "
      "folder"
    )
  return pretrained.read(folder, name)


def _download(repo: str, revision: str | None, names: Sequence[str]) -> str:
  """The folder with these files of a repository, in the library's cache."""
  if not _NAME.fullmatch(repo):
    raise ValueError(
      f"{repo!r} is neither a folder nor OWNER/NAME on the Hugging Face Hub"
    )
  found = library()
  with in_one_line(f"{repo} cannot be fetched"):
    return found.snapshot_download(
      repo, revision=revision, allow_patterns=list(names)
    )
