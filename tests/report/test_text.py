"""Whatever things are called, no reader of what we write runs their names."""

import csv
import io
import json
import re

import pytest
from hostile import FORMULAS, HOSTILE, rendered

from kfkd_jax.export import predict
from kfkd_jax.report import page, tables, text


@pytest.mark.parametrize("name", HOSTILE + FORMULAS)
def test_markdown_shows_names_letter_by_letter(name):
  line = rendered(f"Called {text.to_markdown(name)}.\n")
  assert [tag for tag, _ in line.tags] == ["p"]
  assert line.text.strip() == f"Called {text.printable(name)}."
  cells = rendered(page.to_markdown([{"name": name, name: 1}]))
  assert [tag for tag, _ in cells.tags].count("td") == 2
  assert {tag for tag, _ in cells.tags} <= {
    "table", "thead", "tbody", "tr", "th", "td",
  }  # fmt: skip
  assert cells.text.count(text.printable(name)) == 2


def test_plain_names_stay_as_they_are():
  for name in (
    "kf_one_step",
    "data.root=/a/b-c.d",
    "naïve 日本 (2)",
    "C++, C#",
  ):
    assert text.to_markdown(name) == name
    assert list(csv.reader([text.to_csv([{"a": name}]).splitlines()[1]])) == [
      [name]
    ]


@pytest.mark.parametrize("name", FORMULAS)
def test_csv_has_no_cell_that_a_spreadsheet_runs(name):
  ours = text.to_csv([{name: name, "gain": -0.5}])
  theirs = text.to_csv(
    tables.flat({(f"data.root={name}",): [{"method": name}]})
  )
  for written in (ours, theirs):
    rows = list(csv.reader(io.StringIO(written, newline="")))
    cells = [cell for row in rows for cell in row]
    assert cells.count("'" + name.replace("\r", "\n")) == 2
    assert not [c for c in cells if c.strip()[:1] in ("=", "+", "@", "＝")]
  assert ours.endswith(",-0.5\n")


@pytest.mark.parametrize("number", ["-0.5", "+3", "-inf", "-1e-3"])
def test_csv_keeps_numbers(number):
  assert text.to_csv([{"a": number}]) == f"a\n{number}\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_json_is_exact_and_holds_no_tag(name):
  written = text.without_markup(json.dumps({name: [name]}))
  assert json.loads(written) == {name: [name]}
  assert not set("<>&") & set(written)


@pytest.mark.parametrize("name", HOSTILE)
def test_sweep_titles_and_predictions_are_one_harmless_line(name):
  row = dict.fromkeys(("nll", "ece", "train_cost", "accuracy", "gain"), 0.5)
  row |= {"accuracy_error": None, "gain_error": None, "p_holm": None}
  row |= dict.fromkeys(("gain_low", "gain_high", "level"), 0.5)
  row |= dict.fromkeys(("wins", "ties", "losses", "seeds", "inference_cost"), 1)
  row |= {"method": "kf", "against": "final"}
  page = tables.markdown({(f"data.root={name}",): [row]}, num_seeds=1)
  title = page.partition("\n\n")[0]
  assert [tag for tag, _ in rendered(f"{title}\n").tags] == ["h3"]
  (line,) = predict.summary(predict.np.ones((1, 1)), [name], [name])
  assert line.isprintable()


@pytest.mark.parametrize(
  "name", [*HOSTILE, "a & 50 % \\_{x}^2 # ~$", "[1mm]", "*"]
)
def test_latex_has_no_letter_that_means_more_than_itself(name):
  """What would open, end or skip something stands behind a backslash."""
  row = {"name": name, name: -0.5, "interval": "-1.0 ± 0.5 (-2.0 to +0.1)"}
  lines = page.to_latex([row, {**row, name: None}]).splitlines()
  assert lines[1] == r"\begin{tabular}{lrr}"
  assert [lines[n] for n in (2, 4, 7)] == [
    r"\toprule", r"\midrule", r"\bottomrule",
  ]  # fmt: skip
  assert r"$-$1.0 $\pm$ 0.5 ($-$2.0 to +0.1)" in lines[5]
  for line in (lines[3], *lines[5:7]):
    assert len(re.findall(r"(?<!\\)&", line)) == 2
    assert line.endswith(r" \\") and not line.lstrip().startswith(("[", "*"))
    bare = re.sub(r"\\([&%$#_{}\\]|[a-z]+)", "", line)
    assert not set(bare) & set("%#_~^<>|")
    depth = 0
    for letter in bare:
      depth += {"{": 1, "}": -1}.get(letter, 0)
      assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
