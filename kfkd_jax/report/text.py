"""Names and tables as text that neither breaks nor runs where it is read.

Names of classes, runs and files come from whoever made the data.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What spreadsheets take for the beginning of a formula, also in full width.
_FORMULA = tuple("=+-@＝＋－＠")  # fmt: skip
# Underscores within a word mean nothing in Markdown.
_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")


def percent(
  mean: float | None,
  error: float | None,
  *,
  sign: str = "",
  decimals: int = 1,
  ends: Sequence[float] | None = None,
) -> str:
  """A share in %, with its error and its interval where there are any.

  >>> percent(0.5, 0.01), percent(0.5, None, sign="+", decimals=2)
  ('50.0 ± 1.0', '+50.00')
  >>> percent(0.5, 0.01, ends=(0.48, 0.521))
  '50.0 ± 1.0 (48.0 to 52.1)'
  """
  if mean is None:
    return "-"
  digits = f"{sign}.{decimals}f"
  half = "" if error is None else f" ± {100 * error:.{decimals}f}"
  low_high = [] if ends is None else [f"{100 * end:{digits}}" for end in ends]
  interval = f" ({' to '.join(low_high)})" if low_high else ""
  return f"{100 * mean:{digits}}{half}{interval}"


def with_minus(text: str) -> str:
  """The text with real minus signs before its numbers."""
  return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def printable(text: str) -> str:
  r"""The text on one line, without what moves a terminal's cursor.

  >>> printable("a\nb\x1b[2J")
  'a b [2J'
  """
  return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def to_markdown(text: str) -> str:
  r"""The text as it stands in a line or a cell of Markdown, HTML in it or not.

  >>> to_markdown("a_b <b>|`c`")
  'a_b &lt;b&gt;\\|\\`c\\`'
  """
  return _MARKUP.sub(r"\\\1", html.escape(printable(text), quote=False))


_LATEX = str.maketrans({
  **{c: f"\\{c}" for c in "&%$#_{}"},
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
  "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$",
  "ₑ": "$_e$", "–": "--", "…": r"\dots{}",
  # The end of a row before would take either for an argument.
  "[": "{[}", "*": "{*}",
})  # fmt: skip


def to_latex(text: str) -> str:
  r"""The text as it stands in a cell of LaTeX, whose minus signs are long.

  >>> to_latex("a_b & -1.5 %")
  'a\\_b \\& $-$1.5 \\%'
  """
  return with_minus(printable(text)).translate(_LATEX)


def without_markup(json_text: str) -> str:
  r"""The same JSON, without letters that could end or open an HTML tag.

  >>> without_markup('{"a": "<b>"}')
  '{"a": "\\u003cb\\u003e"}'
  """
  # Outside of strings JSON has none of them.
  return re.sub("[<>&]", lambda c: f"\\u{ord(c[0]):04x}", json_text)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  r"""Rows of equal keys; None becomes an empty cell.

  Text that a spreadsheet would run as a formula begins with an apostrophe.

  >>> to_csv([{"run": "=1+1", "gain": -0.5}])
  "run,gain\n'=1+1,-0.5\n"
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(map(_cell, rows[0]))
  writer.writerows([_cell(row[key]) for key in rows[0]] for row in rows)
  return buffer.getvalue()


def _cell(value: Any) -> Any:
  if not isinstance(value, str) or _is_number(value):
    return value
  # The writer quotes no lone \r, which readers take for the end of a row.
  value = value.replace("\r", "\n")
  is_formula = value.lstrip().startswith(_FORMULA) or value[:1] in ("\t", "\n")
  return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return text == text.strip()
