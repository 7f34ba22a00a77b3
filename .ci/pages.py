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
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import griffe
import nbformat
from latex2mathml import converter
from mkdocs.structure.files import File, Files

import kfkd_jax
from kfkd_jax import catalogue
from kfkd_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLABS = ROOT / "colabs"
PARTS = ("Idea", "Formula", "Paper", "Key", "Cost", "When it loses")
WRITTEN = ("Idea", "Formula", "Function", "Paper", "When it loses")
MODULES = (
  "recording", "forgetting", "fusion", "history", "losses", "averaging",
  "label_noise", "auditing", "relabelling", "metrics", "calibration", "sets",
  "statistics", "checkpoints", "predictions", "merging", "models",
  "export.remote", "export.pretrained",
  "theory.hilbert", "theory.ridge", "theory.deep_linear", "theory.spectral",
  "theory.ntk",
)  # fmt: skip
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))
# Of the navigation, what follows the pages that mkdocs.yml names.
MADE = {
  "Methods": [f"methods/{slug}.md" for slug in catalogue.METHODS],
  "Notebooks": [f"{path.stem}.md" for path in NOTEBOOKS],
  "Reference": [f"reference/{name}.md" for name in ("kfkd_jax", *MODULES)],
}
# Pages that lie elsewhere in the repository, as links of `colabs` name them.
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
  """Completes mkdocs.yml."""
  # Not `repo_url`, for which every page would ask the code host for stars.
  config.copyright = f'<a href="{repository()}">{repository()}</a>'
  for entry in config.nav:
    for title, pages in entry.items():
      entry[title] = [*pages, *MADE[title]] if title in MADE else pages
  return config


def on_files(files: Files, config: Any) -> Files:
  """Puts what is made in the place of what it is made from."""
  for name in ("methods.md", *(path.name for path in NOTEBOOKS)):
    files.remove(files.get_file_from_path(name))
  for name, content in made():
    files.append(File.generated(config, name, content=content))
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Gives a page the site's links and formulas, and the board its tables."""
  if page.file.src_uri == "board/README.md":
    markdown += "\n" + board()
  return with_formulas(at_home(markdown, page.file.src_uri.count("/")))


class Docstrings(griffe.Extension):
  """Docstrings as they are meant: examples are code, `<` begins no tag."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """Rewrites the docstring of whatever has one."""
    if obj.docstring:
      text = re.sub(r"(?<=[\s(])<(?=\w)", "&lt;", obj.docstring.value)
      obj.docstring.value = re.sub(
        r"(?ms)^( *)>>> .*?(?=\n\s*\n|\Z)",
        lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```",
        text,
      )


def made() -> Iterator[tuple[str, str | bytes]]:
  """All pages and pictures that no file of `colabs` is, by where they go."""
  start = (ROOT / "README.md").read_text()
  yield (
    "index.md",
    re.sub(r"\]\((?!https?:|colabs/)", "](../", start).replace(
      "](colabs/", "]("
    ),
  )
  yield "changelog.md", (ROOT / "CHANGELOG.md").read_text()
  guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
  yield "contributing.md", guide.replace("](../colabs/", "](")
  yield "methods.md", methods_page()
  for slug in catalogue.METHODS:
    yield f"methods/{slug}.md", method_page(slug)
  yield "keys.md", keys_page()
  yield "reference/kfkd_jax.md", package_page()
  for name in MODULES:
    yield f"reference/{name}.md", reference_page(name)
  for path in NOTEBOOKS:
    yield from notebook_page(path)


def at_home(markdown: str, depth: int) -> str:
  """Links as the site has them; what it has not is in the repository."""
  up = "../" * depth

  def link(found: re.Match[str]) -> str:
    path, hash_, anchor = found[1].replace(".ipynb", ".md").partition("#")
    outside = path.removeprefix(up)
    if outside in ELSEWHERE:
      path = up + ELSEWHERE[outside]
    elif outside.startswith("../"):
      path = f"{repository()}/blob/main/{outside.removeprefix('../')}"
    return f"]({path}{hash_}{anchor})"

  return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", link, markdown)


def with_formulas(markdown: str) -> str:
  """TeX between dollars as MathML, which browsers show by themselves."""

  def formula(found: re.Match[str]) -> str:
    if found["block"]:
      shown = converter.convert(found["block"].strip(), display="block")
      return f'<div class="formula">{shown}</div>'
    if found["inline"]:
      # In a span, as a line that began with `math` would be a block.
      return f"<span>{converter.convert(found['inline'])}</span>"
    return found[0]  # code stays as it is

  return re.sub(
    r"(?ms)^```.*?^```|`[^`\n]+`|\$\$\s(?P<block>.*?)\$\$"
    r"|(?<![\\$\w])\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?)\$(?![\w$])",
    formula,
    markdown,
  )


def written() -> dict[str, dict[str, str]]:
  """What methods.md says of each method, by part."""
  found = {}
  for section in (COLABS / "methods.md").read_text().split("\n## ")[1:]:
    slug, _, said = section.partition("\n")
    parts = re.split(rf"\*\*({'|'.join(WRITTEN)})\.\*\*", said)[1:]
    texts = zip(parts[::2], parts[1::2], strict=True)
    found[slug] = {part: text.strip() for part, text in texts}
  return found


def methods_page() -> str:
  """The methods in a table, below what introduces them."""
  intro = (COLABS / "methods.md").read_text().partition("\n## ")[0]
  said = written()
  rows = [
    (
      f"[{method.name}](methods/{slug}.md)",
      f"`{slug}`",
      said[slug]["Idea"].replace("\n", " "),
    )
    for slug, method in catalogue.METHODS.items()
  ]
  return f"{intro}\n\n{table(('method', 'row', 'idea'), rows)}\n"


def method_page(slug: str) -> str:
  """All that is known of a method."""
  method = catalogue.METHODS[slug]
  said = {
    part: re.sub(r"\]\((?!https?:)", "](../", text)
    for part, text in written()[slug].items()
  }
  said["Idea"] += f"\n\nThe row `{slug}` of results and tables."
  if "Function" in said:
    name = said["Function"].strip("`")
    said["Formula"] += f"\n\nIn the library: [`{name}`][{name}]."
  paper = filter(None, (method.paper, said.get("Paper", "").rstrip(".")))
  said["Paper"] = ", ".join(paper) or "None: common practice, or our own"
  said["Paper"] += "."
  said["Key"] = asked(method)
  said["Cost"] = cost(slug)
  parts = [f"## {part}\n\n{said[part]}" for part in PARTS]
  return "\n\n".join([f"# {method.name}", *parts]) + "\n"


def asked(method: catalogue.Method) -> str:
  """How one gets a method, and the keys that it alone reads."""
  said = [
    f"`--config.compare.methods={method.slug}` adds the row."
    if "asked" in method.needs
    else "In every comparison."
  ]
  if "labels" in method.needs:
    key = f"--config.train.objective={method.slug}"
    said.append(f"`{key}` lets the teacher learn so.")
  if "memory" in method.needs:
    said.append("It remembers what was said of each image: none may be mixed.")
  if method.keys:
    said.append("Its options:\n")
  meanings = meaning_of_keys()
  options = [f"- [`{k}`](../keys.md#{k}): {meanings[k]}" for k in method.keys]
  return "\n".join([" ".join(said), *options])


def cost(slug: str) -> str:
  """What a row took where it was measured, beside what it was worth."""
  found = []
  for part in (COLABS / "results.md").read_text().split("\n## ")[1:]:
    noise = part.partition("\n")[0]
    for row in re.findall(rf"^\|[^|]*\(`{slug}`\) \|(.*)\|$", part, re.M):
      cells = [cell.strip() for cell in row.split("|")]
      found.append((noise, *cells[:2], *cells[-2:]))
  if found:
    head = (
      "noise", "accuracy, %", "gain over `final`", "trainings", "networks",
    )  # fmt: skip
    where = "On digits, ten seeds, `networks` at inference"
    return f"{where} ([all rows](../results.md)):\n\n{table(head, found)}"
  for sweep in sweeps():
    for row in sweep.rows:
      if row["method"] == slug:
        return (
          f"{float(row['train_cost']):.2f} trainings and "
          f"{float(row['inference_cost']):.1f} networks at inference, where it "
          f"was [measured](../board/README.md#{sweep.name})."
        )
  raise ValueError(f"neither results.md nor the board has a row {slug}")


def meaning_of_keys() -> dict[str, str]:
  """What `kfkd help` says of each key, on one line."""
  names = dict.fromkeys(k.name.partition(".")[0] for k in config_lib.KEYS)
  lines = config_lib.explain(list(names)).splitlines()
  found = {}
  for said, bounds in zip(lines[::2], lines[1::2], strict=True):
    name, _, meaning = said.partition(": ")
    found[name] = f"{meaning} D{html.escape(bounds.strip()[1:])}."
  return found


def keys_page() -> str:
  """Every key, with an anchor of its own."""
  parts = [
    "# All keys",
    "What `kfkd help` says of the configuration. Any key is set by "
    "`--config.section.key=value`, or in a config file.",
  ]
  section = None
  for name, said in meaning_of_keys().items():
    if section != name.partition(".")[0]:
      section = name.partition(".")[0]
      parts.append(f"## {section}")
    parts.append(f'<p class="key" id="{name}" markdown>`{name}` {said}</p>')
  return "\n\n".join(parts) + "\n"


def package_page() -> str:
  """What the package holds at its top, with links to where it is described."""
  said = inspect.getdoc(kfkd_jax) or ""
  for name in kfkd_jax.__all__:
    for module in MODULES:
      if name in public_names(module):
        link = f"[`{name}`][kfkd_jax.{module}.{name}]"
        said = said.replace(f"`{name}`", link)
  return f"# kfkd_jax\n\n{said}\n"


def reference_page(name: str) -> str:
  """A module's docstring, and all that it defines or hands on."""
  full = f"kfkd_jax.{name}"
  said = inspect.getdoc(importlib.import_module(full)) or ""
  public = [f"::: {full}.{key}" for key in public_names(name)]
  return "\n\n".join([f"# {full}", said, *public]) + "\n"


def public_names(name: str) -> list[str]:
  """The functions and classes of a module, or of the rooms inside it."""
  full = f"kfkd_jax.{name}"
  return [
    key
    for key, value in vars(importlib.import_module(full)).items()
    if not key.startswith("_")
    and callable(value)
    and getattr(value, "__module__", "").startswith(full)
  ]


def notebook_page(path: pathlib.Path) -> Iterator[tuple[str, str | bytes]]:
  """A notebook as a page, with its stored outputs, and its pictures."""
  parts, number = [], 0
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == "markdown":
      parts.append(cell.source)
      continue
    parts.append(f"```python\n{cell.source}\n```")
    for output in cell.outputs:
      shown = output.get("data", {})
      if "image/png" in shown:
        number += 1
        picture = f"figures/{path.stem}-{number}.png"
        yield picture, base64.b64decode(shown["image/png"])
        width = output.metadata.get("image/png", {}).get("width", 500)
        parts.append(f"![What the cell shows]({picture}){{ width={width} }}")
      elif "text/markdown" in shown:
        parts.append(shown["text/markdown"])
      else:
        text = output.get("text", shown.get("text/plain", ""))
        parts.append(f"```text\n{text.strip()}\n```")
  yield f"{path.stem}.md", "\n\n".join(parts) + "\n"


class Sweep(NamedTuple):
  """A sweep on the board: the note and the rows that `.ci/board` left."""

  name: str
  note: dict[str, Any]
  rows: list[dict[str, str]]


def sweeps() -> Iterator[Sweep]:
  """All that are on the board."""
  for path in sorted((COLABS / "board").glob("*.csv")):
    with path.open() as file:
      rows = list(csv.DictReader(file))
    yield Sweep(
      path.stem, json.loads(path.with_suffix(".json").read_text()), rows
    )


def board() -> str:
  """Every sweep: a command for each point of its grid, and the rows there."""
  parts = []
  for sweep in sweeps():
    where = [sweep.note["machine"], sweep.note["date"]]
    where += [f"{key} {n}" for key, n in sweep.note["versions"].items()]
    parts.append(f"## {sweep.name}")
    parts.append(f"{', '.join(where)}. [As CSV]({sweep.name}.csv).")
    axes = [column for column in sweep.rows[0] if "." in column]
    points: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in sweep.rows:
      point = tuple(f"{axis}={row[axis]}" for axis in axes if row[axis])
      points.setdefault(point, []).append(row)
    for point, rows in points.items():
      methods = [r["method"] for r in rows if r["method"] in catalogue.ASKED]
      more = [f"compare.methods={','.join(methods)}"] if methods else []
      options = [f"--config.{value}" for value in (*point, *more)]
      command = " ".join([sweep.note["command"], *options])
      scores = table(
        ("method", "seeds", "accuracy, %", "gain", "trainings", "networks"),
        map(scored, rows),
      )
      inner = f"```sh\n{command}\n```\n\n{scores}".replace("\n", "\n    ")
      fold = "???" if len(points) > 1 else "???+"
      title = ", ".join(point) or "all rows"
      parts.append(f'{fold} note "{title}"\n\n    {inner}')
  return "\n\n".join(parts) + "\n"


def scored(row: dict[str, str]) -> list[str]:
  """A row of a sweep's table, in %, points and networks."""

  def points(name: str, sign: str = "") -> str:
    return f"{100 * float(row[name]):{sign}.1f}"

  slug = row["method"]
  known = slug in catalogue.METHODS
  error = f" ± {points('accuracy_error')}" if row["accuracy_error"] else ""
  low, high = points("gain_low", "+"), points("gain_high", "+")
  return [
    f"[`{slug}`](../methods/{slug}.md)" if known else f"`{slug}`",
    row["seeds"],
    points("accuracy") + error,
    "-" if slug == row["against"] else f"{points('gain', '+')} [{low}, {high}]",
    f"{float(row['train_cost']):.2f}",
    f"{float(row['inference_cost']):.1f}",
  ]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A table in Markdown."""
  head = list(head)
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
