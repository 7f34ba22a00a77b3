"""An export on the Hugging Face Hub: what its card says there, sending it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from kfkd_jax import catalogue, files
from kfkd_jax.data import hub as hub_data
from kfkd_jax.export import formats, pretrained, remote
from kfkd_jax.report import text
from kfkd_jax.run import forecast, seals


def metadata(
  data_name: str, row: Mapping[str, Any], *, license_id: str | None
) -> dict[str, Any]:
  """What the Hub reads at the head of a card.

  Args:
    data_name: of the data set.
    row: of `results.jsonl`, of the model in `pretrained.WEIGHTS`.
    license_id: of the model; None leaves it out.
  """
  name = hub_data.shown(data_name)
  repository = hub_data.repository(data_name)
  title = catalogue.method_name(row["method"])
  return {
    **({"license": license_id} if license_id else {}),
    "library_name": "kfkd-jax",
    "pipeline_tag": "image-classification",
    "tags": ["image-classification", "jax", "flax", "knowledge-distillation"],
    **({"datasets": [repository]} if repository else {}),
    "metrics": ["accuracy"],
    "model-index": [
      {
        "name": f"{title}, {name}",
        "results": [
          {
            "task": {"type": "image-classification"},
            "dataset": {
              "type": repository or name, "name": name, "split": "test"
            },
            "metrics": [
              {
                "type": "accuracy",
                "value": round(row["accuracy"], 4),
                "name": f"Accuracy on {row['num_examples']} test points",
              }
            ],
          }
        ],
      }
    ],
  }  # fmt: skip


def to_yaml(value: Any) -> str:
  r"""The value on one line of YAML, most of which is JSON.

  >>> to_yaml({"type": "a\n<b>", "value": [0.5]})
  '{"type": "a\\n\\u003cb\\u003e", "value": [0.5]}'
  """
  line = text.without_markup(json.dumps(value, ensure_ascii=False))
  return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in line)


def push(repo: str, workdir: epath.Path, *, private: bool) -> str:
  """Sends what `kfkd export` left to a repository; says where it is.

  Nothing else that lies in the folder goes with it. Models that an earlier
  export sent there and this one lacks are taken away.

  Args:
    repo: `OWNER/NAME`, or `NAME` for the owner of the token; made if new.
    workdir: the working directory.
    private: whether a new one is.
  """
  folder = epath.Path(workdir) / "export"
  names = _sound_files(folder)
  library = remote.library()
  with remote.in_one_line(f"{repo} cannot be pushed to"):
    if library.get_token() is None:
      raise ValueError(f"there is no token; {remote.REMEDIES[401]}")
    url = library.create_repo(repo, private=private or None, exist_ok=True)
    library.upload_folder(
      repo_id=url.repo_id,
      folder_path=os.fspath(folder),
      allow_patterns=names,
      delete_patterns=[
        f"{method}{suffix}{inside}"
        for method in catalogue.EXPORTABLE
        for suffix in formats.ALL_SUFFIXES
        for inside in ("", "/*")
      ],
      commit_message="Upload what kfkd export made",
    )
  size = sum((folder / name).stat().length for name in names)
  return "\n".join([
    f"{len(names)} files of {folder}, {forecast.shown(size)}, are at {url}:",
    f"  {', '.join(names)}",
    f"kfkd_jax.from_pretrained({url.repo_id!r}) takes its {pretrained.WEIGHTS}",
  ])  # fmt: skip


def _sound_files(folder: epath.Path) -> list[str]:
  """The names of what an export left, which must be whole and local."""
  if "://" in os.fspath(folder):
    raise ValueError(f"push sends local files; copy {folder} here first")
  if not files.exists(folder / seals.SUMS):
    raise ValueError(f"{folder} holds no export; run `kfkd export` first")
  if changed := seals.changed(folder):
    raise ValueError(
      f"{folder / changed[0]} is not what was exported; run `kfkd export` again"
    )
  listed = seals.listed(folder)
  if pretrained.CONFIG not in listed:
    raise ValueError(
      f"{folder} has no {pretrained.CONFIG}, as of an earlier version; remove "
      "the folder and run `kfkd export` again"
    )
  return [*listed, seals.SUMS]
