"""What the site shows and no file of `colabs` holds; mkdocs.yml names it.

The start is README. Every method has a page, from the catalogue, its section
of methods.md, the keys and the measured rows; so have all keys, the functions,
each notebook with its outputs, and the tables of the results board.
"""

from __future__ import annotations

import base64
import csv
import html
import importlib
import inspect
import json
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import griffe
import latex2mathml.converter
import nbformat
from mkdocs.structure.files import File, Files

from kfkd_jax import catalogue
from kfkd_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLABS = ROOT / "colabs"
PARTS = ("Idea", "Formula", "Paper", "Key", "Cost", "When it loses")
WRITTEN = ("Idea", "Formula", "Paper", "Function", "When it loses")
MODULES = (
  "recording", "forgetting", "fusion", "history", "losses", "averaging",
  "label_noise", "auditing", "relabelling", "metrics", "calibration", "sets",
  "statistics", "checkpoints", "predictions", "merging", "models",
  "theory.hilbert", "theory.ridge", "theory.deep_linear", "theory.spectral",
  "theory.ntk",
)  # fmt: skip
# Pages that lie elsewhere in the repository, by their links from colabs.
ELSEWHERE = {
  "../README.md": "index.md",
  "../CHANGELOG.md": "changelog.md",
  "../.github/CONTRIBUTING.md": "contributing.md",
}


def repository() -> str:
  """The address that everything else has to agree with."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  return project["urls"]["Repository"]


def on_config(config: Any) -> Any:
  # Not `repo_url`, for which every page would ask the code host for stars.
  config.copyright = f'<a href="{repository()}">{repository()}</a>'
  config.nav = [
    {title: [*pages, *added[title]()]} if title in added else {title: pages}
    for (title, pages), added in (
      (*entry.items(), _ADDED) for entry in config.nav
    )
  ]
  return config


_ADDED: dict[str, Callable[[], list[str]]] = {
  "Methods": lambda: [f"methods/{slug}.md" for slug in catalogue.METHODS],
  "Notebooks": lambda: [f"{p.stem}.md" for p in notebooks()],
  "Reference": lambda: [f"reference/{name}.md" for name in MODULES],
}


def on_files(files: Files, config: Any) -> Files:
  for path in notebooks():
    files.remove(files.get_file_from_path(path.name))
  files.remove(files.get_file_from_path("methods.md"))
  for name, content in generated():
    files.append(File.generated(config, name, content=content))
  return files


class Docstrings(griffe.Extension):
  """Docstrings as they are meant: examples are code, `<` is no tag."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    if obj.docstring:
      obj.docstring.value = re.sub(
        r"(?ms)^( *)>>> .*?(?=\n\s*\n|\Z)",
        lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```",
        re.sub(r"(?<=[\s(])<(?=\w)", "&lt;", obj.docstring.value),
      )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  if page.file.src_uri == "board/README.md":
    markdown += "\n" + board()
  depth = page.file.src_uri.count("/")
  return with_formulas(at_home(markdown, depth))


def generated() -> Iterator[tuple[str, str | bytes]]:
  """All pages and pictures that are made here, by where they go."""
  start = (ROOT / "README.md").read_text()
  yield "index.md", start.replace("](", "](../").replace("](../colabs/", "](")
  yield "changelog.md", (ROOT / "CHANGELOG.md").read_text()
  yield "contributing.md", (ROOT / ".github" / "CONTRIBUTING.md").read_text()
  yield "methods.md", overview()
  for slug in catalogue.METHODS:
    yield f"methods/{slug}.md", method_page(slug)
  yield "keys.md", keys()
  for name in MODULES:
    yield f"reference/{name}.md", reference(name)
  for path in notebooks():
    yield from notebook(path)


def at_home(markdown: str, depth: int) -> str:
  """Links as the site has them; what it has not is in the repository."""

  def link(found: re.Match[str]) -> str:
    target, hash_, anchor = found[1].partition("#")
    target = target.replace(".ipynb", ".md")
    up = "../" * depth
    if target.startswith(f"{up}../"):
      inner = ELSEWHERE.get(target.removeprefix(up))
      outer = f"{repository()}/blob/main/{target.removeprefix(f'{up}../')}"
      target = outer if inner is None else up + inner
    return f"]({target}{hash_}{anchor})"

  return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", link, markdown)


def with_formulas(markdown: str) -> str:
  """TeX between dollars as MathML, which browsers show by themselves."""

  def formula(found: re.Match[str]) -> str:
    block, inline = found["block"], found["inline"]
    if block is not None:
      shown = latex2mathml.converter.convert(block.strip(), display="block")
      return f'<div class="formula">{shown}</div>'
    if inline is not None:
      # In a span, as a line that began with `math` would be a block.
      return f"<span>{latex2mathml.converter.convert(inline)}</span>"
    return found[0]  # code stays as it is

  return re.sub(
    r"(?ms)^```.*?^```|`[^`\n]+`|\$\$\s(?P<block>.*?)\$\$"
    r"|(?<![\\$\w])\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?)\$(?![\w$])",
    formula,
    markdown,
  )


def sections() -> dict[str, dict[str, str]]:
  """What methods.md says of each method, by part."""
  found = {}
  for text in (COLABS / "methods.md").read_text().split("\n## ")[1:]:
    slug, _, body = text.partition("\n")
    pieces = re.split(rf"\*\*({'|'.join(WRITTEN)})\.\*\*", body)
    found[slug] = {
      name: content.strip()
      for name, content in zip(pieces[1::2], pieces[2::2], strict=True)
    }
  return found


def overview() -> str:
  """The methods in a table, below what introduces them."""
  intro = (COLABS / "methods.md").read_text().partition("\n## ")[0]
  found = sections()
  rows = [
    f"| [{method.name}](methods/{slug}.md) | `{slug}` | {found[slug]['Idea']} |"
    for slug, method in catalogue.METHODS.items()
  ]
  table = ["| method | row | idea |", "| --- | --- | --- |", *rows]
  return "\n".join([intro, "", *(row.replace("\n", " ") for row in table)])


def method_page(slug: str) -> str:
  method, said = catalogue.METHODS[slug], sections()[slug]
  inner = {part: re.sub(r"\]\((?!https?:)", "](../", said.get(part, "")) for part in WRITTEN}
  inner["Idea"] += f"\n\nIn tables it is called “{method.name}”, in results `{slug}`."
  if inner["Function"]:
    inner["Formula"] += f"\n\nIn the library: [{inner['Function']}][]."
  known = ", ".join(filter(None, (method.paper, inner["Paper"].rstrip("."))))
  inner["Paper"] = f"{known or 'None: common practice, or our own'}."
  inner["Key"] = _asked(method)
  inner["Cost"] = _cost(slug)
  parts = [f"## {part}\n\n{inner[part]}" for part in PARTS]
  return "\n\n".join([f"# {method.name}", *parts]) + "\n"


def _asked(method: catalogue.Method) -> str:
  slug = method.slug
  lines = ["In every comparison."]
  if "asked" in method.needs:
    lines = [f"`--config.compare.methods={slug}` adds the row."]
  if "labels" in method.needs:
    lines.append(f"`--config.train.objective={slug}` lets the teacher learn so.")
  if "memory" in method.needs:
    lines.append("It remembers what was said of each image: none may be mixed.")
  if method.keys:
    lines.append("Its options:")
    listed = "\n".join(f"- [`{key}`](../keys.md#{key}): {_keys()[key]}" for key in method.keys)
    return " ".join(lines) + f"\n\n{listed}"
  return " ".join(lines)


def _cost(slug: str) -> str:
  """What a row took where it was measured, beside what it was worth."""
  digits = [
    [noise, accuracy, gain, train, infer]
    for noise, rows in _digits().items()
    for accuracy, gain, train, infer in rows.get(slug, [])
  ]
  if digits:
    where = "On digits, ten seeds ([all rows](../results.md)):"
    head = ("noise", "accuracy, %", "gain over `final`", "trainings", "networks at inference")
    return f"{where}\n\n{_table(head, digits)}"
  for name, _, rows in boards():
    for row in rows:
      if row["method"] == slug:
        costs = f"{float(row['train_cost']):.2f} trainings, {float(row['inference_cost']):.1f}"
        return f"{costs} networks at inference, as [measured](../board/README.md#{name})."
  raise ValueError(f"{slug} was never measured: neither results.md nor the board has it")


def _digits() -> dict[str, dict[str, list[tuple[str, ...]]]]:
  """The rows of results.md by noise and method."""
  found: dict[str, dict[str, list[tuple[str, ...]]]] = {}
  for part in (COLABS / "results.md").read_text().split("\n## ")[1:]:
    rows = re.findall(r"^\| [^|]*\(`(\w+)`\) \|(.*)\|$", part, re.M)
    for slug, rest in rows:
      cells = [cell.strip() for cell in rest.split("|")]
      noise = found.setdefault(part.partition("\n")[0], {})
      noise.setdefault(slug, []).append((*cells[:2], *cells[-2:]))
  return found


def _keys() -> dict[str, str]:
  """What `kfkd help` says of each key, on one line."""
  sections_ = dict.fromkeys(key.name.partition(".")[0] for key in config_lib.KEYS)
  lines = config_lib.explain(list(sections_)).splitlines()
  return {
    said.partition(": ")[0]: f"{said.partition(': ')[2]} D{html.escape(bounds.strip()[1:])}."
    for said, bounds in zip(lines[::2], lines[1::2], strict=True)
  }


def keys() -> str:
  """Every key with an anchor of its own."""
  intro = (
    "# All keys\n\nOf the configuration: what `kfkd help` says, in one page. Any is set by "
    "`--config.section.key=value`, or in a config file."
  )
  parts, section = [intro], None
  for name, said in _keys().items():
    head = name.partition(".")[0] if "." in name else "general"
    if head != section:
      section = head
      parts.append(f"## {section}")
    parts.append(f'<p class="key" id="{name}" markdown>`{name}` {said}</p>')
  return "\n\n".join(parts) + "\n"


def reference(name: str) -> str:
  """A module's docstring and all that it defines or hands on."""
  full = f"kfkd_jax.{name}"
  module = importlib.import_module(full)
  public = [
    key
    for key, value in vars(module).items()
    if not key.startswith("_")
    and (inspect.isfunction(value) or inspect.isclass(value) or hasattr(value, "lower"))
    and getattr(value, "__module__", "").startswith(full)
  ]
  said = inspect.getdoc(module) or ""
  parts = [f"# {full}", said, *(f"::: {full}.{key}" for key in public)]
  return "\n\n".join(parts) + "\n"


def notebooks() -> list[pathlib.Path]:
  return sorted(COLABS.glob("*.ipynb"))


def notebook(path: pathlib.Path) -> Iterator[tuple[str, str | bytes]]:
  """A notebook as a page, with its stored outputs, and its pictures."""
  parts, number = [], 0
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == "markdown":
      parts.append(cell.source)
      continue
    parts.append(f"```python\n{cell.source}\n```")
    for output in cell.outputs:
      data = output.get("data", {})
      if "image/png" in data:
        number += 1
        picture = f"figures/{path.stem}-{number}.png"
        yield picture, base64.b64decode(data["image/png"])
        width = output.metadata.get("image/png", {}).get("width", 500)
        parts.append(f"![What the cell shows]({picture}){{ width={width} }}")
      elif "text/markdown" in data:
        parts.append(data["text/markdown"])
      else:
        text = output.get("text", data.get("text/plain", ""))
        parts.append(f"```text\n{text.strip()}\n```")
  yield f"{path.stem}.md", "\n\n".join(parts) + "\n"


def boards() -> Iterator[tuple[str, dict[str, Any], list[dict[str, str]]]]:
  """The sweeps on the board: name, note, rows."""
  for path in sorted((COLABS / "board").glob("*.csv")):
    with path.open() as file:
      rows = list(csv.DictReader(file))
    yield path.stem, json.loads(path.with_suffix(".json").read_text()), rows


def board() -> str:
  """Every sweep: its command for each point of its grid, and its rows."""
  parts = []
  for name, note, rows in boards():
    versions = ", ".join(f"{key} {value}" for key, value in note["versions"].items())
    parts.append(f"## {name}\n\n{note['machine']}, {note['date']}, {versions}. [As CSV]({name}.csv).")
    axes = [key for key in rows[0] if "." in key]
    points: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
      points.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    for point, members in points.items():
      values = [f"{a}={v}" for a, v in zip(axes, point, strict=True) if v]
      asked = [r["method"] for r in members if r["method"] in catalogue.ASKED]
      if asked:
        values.append(f"compare.methods={','.join(asked)}")
      command = " ".join([note["command"], *(f"--config.{v}" for v in values)])
      title = ", ".join(v for v in values if "methods" not in v) or "all rows"
      table = _table(
        ("method", "seeds", "accuracy, %", "gain", "trainings", "networks"),
        [_scored(row) for row in members],
      )
      inner = f"```sh\n{command}\n```\n\n{table}".replace("\n", "\n    ")
      state = "???+" if len(points) == 1 else "???"
      parts.append(f'{state} note "{title}"\n\n    {inner}')
  return "\n\n".join(parts) + "\n"


def _scored(row: dict[str, str]) -> list[str]:
  def points(name: str, sign: str = "") -> str:
    return f"{100 * float(row[name]):{sign}.1f}" if row[name] else ""

  method = row["method"]
  known = method in catalogue.METHODS
  gain = f"{points('gain', '+')} [{points('gain_low', '+')}, {points('gain_high', '+')}]"
  error = f" ± {points('accuracy_error')}" if row["accuracy_error"] else ""
  return [
    f"[`{method}`](../methods/{method}.md)" if known else f"`{method}`",
    row["seeds"],
    points("accuracy") + error,
    "-" if method == row["against"] else gain,
    f"{float(row['train_cost']):.2f}",
    f"{float(row['inference_cost']):.1f}",
  ]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
