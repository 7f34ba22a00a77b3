"""Whatever things are called, no reader of what we write runs their names."""

import csv
import io
import json

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
  theirs = tables.csv_text({(f"data.root={name}",): [{"method": name}]})
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
