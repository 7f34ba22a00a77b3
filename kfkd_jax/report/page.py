"""Pages that need nothing but themselves, and their figures as files."""

from __future__ import annotations

import importlib.resources
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe
from etils import epath
from matplotlib.figure import Figure

from kfkd_jax import files, plots
from kfkd_jax.catalogue import method_name
from kfkd_jax.report import text

_PNG_DPI = 200
_FOLDER = "pages"  # of templates, style and script


class Drawn(NamedTuple):
  """A figure, and what it shows for those who do not see it."""

  figure: Figure
  label: str


class Page(NamedTuple):
  """A page and what lies beside it.

  Attributes:
    html: the page.
    figures: by file name.
    tables: rows by file name; all rows of a table have the same keys.
    shown: the same rows as people read them, where that is not the same.
  """

  html: str
  figures: Mapping[str, Figure]
  tables: Mapping[str, Sequence[Mapping[str, Any]]]
  shown: Mapping[str, Sequence[Mapping[str, Any]]] = {}


def render(
  template: str,
  figures: Mapping[str, Drawn],
  tables: Mapping[str, Sequence[Mapping[str, Any]]],
  **values: Any,
) -> Page:
  """A page from its template, which finds its `figures` as SVG."""
  shown = {
    name: markupsafe.Markup(
      plots.to_svg(drawn.figure, label=drawn.label, prefix=f"{name}-")
    )
    for name, drawn in figures.items()
  }
  html = _environment().get_template(template).render(figures=shown, **values)
  return Page(html, {k: drawn.figure for k, drawn in figures.items()}, tables)


class Written(NamedTuple):
  """What `write` wrote: its files, beside the page, and the page's size."""

  names: list[str]
  size: str


def write(page: Page, path: epath.Path) -> Written:
  """Writes the page, and `figures/` and `tables/` beside it."""
  path = epath.Path(path)
  contents = {path.name: page.html.encode()}
  for name, figure in page.figures.items():
    # For papers and slides, on white; without a date, to be equal each time.
    for kind, no_date in (("svg", {"Date": None}), ("png", {"Software": None})):
      buffer = io.BytesIO()
      plots.save(figure, buffer, format=kind, dpi=_PNG_DPI, metadata=no_date)
      contents[f"figures/{name}.{kind}"] = buffer.getvalue()
  for name, rows in page.tables.items():
    contents |= table_files(f"tables/{name}", rows, page.shown.get(name))
  for name, content in contents.items():
    files.write_bytes(path.parent / name, content)
  return Written([*contents], f"{len(contents[path.name]) / 1000:.0f} kB")


def flat(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """The row's values under `keys`; an interval becomes two columns."""
  found: dict[str, Any] = {}
  for key in keys:
    if key.endswith("_interval"):
      low, high = row[key] or (None, None)
      found |= {f"{key}_low": low, f"{key}_high": high}
    else:
      found[key] = row[key]
  return found


def table_files(
  name: str,
  rows: Sequence[Mapping[str, Any]],
  shown: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, bytes]:
  """A table as files, by name: for programs, for texts and for papers.

  Args:
    name: of the files, before their endings.
    rows: of equal keys.
    shown: the rows as people read them; None for the same.
  """
  shown = shown or rows
  return {
    f"{name}.csv": text.to_csv(rows).encode(),
    f"{name}.md": to_markdown(shown).encode(),
    f"{name}.tex": to_latex(shown).encode(),
  }


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of equal keys, floats with four digits after the point."""
  head = [text.to_markdown(key) for key in rows[0]]
  lines = [head, ["---"] * len(head)]
  lines += [[text.to_markdown(c) for c in _cells(row)] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(rows: Sequence[Mapping[str, Any]]) -> str:
  r"""Rows of equal keys as a `tabular` that needs the package booktabs.

  Numbers stand to the right, text to the left.

  >>> print(to_latex([{"method": "kf_kd", "gain": -0.5}]))
  % needs \usepackage{booktabs}
  \begin{tabular}{lr}
  \toprule
  method & gain \\
  \midrule
  kf\_kd & $-$0.5000 \\
  \bottomrule
  \end{tabular}
  <BLANKLINE>
  """
  # Nothing is bold: which row is best is a claim that its interval has to
  # make, and a table of methods chosen on other points makes several.
  body = [_cells(row) for row in rows]
  columns = zip(*body, strict=True)
  align = "".join("r" if all(map(_is_number, c)) else "l" for c in columns)
  head, *lines = (
    " & ".join(map(text.to_latex, cells)) + r" \\" for cells in (rows[0], *body)
  )
  return "\n".join([
    r"% needs \usepackage{booktabs}",
    rf"\begin{{tabular}}{{{align}}}",
    r"\toprule", head, r"\midrule", *lines, r"\bottomrule",
    r"\end{tabular}", "",
  ])  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[str]:
  return [
    "" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v)
    for v in row.values()
  ]


def _is_number(cell: str) -> bool:
  """Whether a cell begins with a number, or has none to show."""
  return cell in ("", "-") or bool(re.match(r"\(?[+-]?\d", cell))


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    loader=jinja2.FunctionLoader(_source),
  )
  environment.filters.update(
    percent=percent,
    signed=signed,
    decimals=decimals,
    method=method_name,
    prose=prose,
  )
  environment.globals["source"] = lambda name: markupsafe.Markup(_source(name))
  return environment


def _source(name: str) -> str:
  here = importlib.resources.files("kfkd_jax.report") / _FOLDER
  return here.joinpath(name).read_text(encoding="utf-8")


def percent(fraction: float) -> str:
  return f"{100 * fraction:.1f}"


def decimals(value: float, places: int = 3) -> str:
  return f"{value:.{places}f}"


def prose(sentence: str) -> str:
  r"""A sentence whose numbers have a real minus sign and keep their unit.

  >>> prose("PS-KD: -1.5 %") == "PS-KD: −1.5\u00a0%"
  True
  """
  return text.with_minus(sentence).replace(" %", "\u00a0%")


def signed(value: float) -> str:
  """A difference of shares in percentage points, with a real minus sign."""
  points = round(100 * value, 1) + 0.0  # never -0.0
  return f"{points:+.1f}".replace("-", "−")
