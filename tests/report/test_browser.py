"""The pages in a real browser: they ask for nothing, and their parts work."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import urllib.request

import pytest
from etils import epath
from test_overview import ODD, make_run, make_sweep
from test_report import NASTY, make_workdir

from kfkd_jax import files
from kfkd_jax.catalogue import METHODS, method_name
from kfkd_jax.report import overview_page as overview
from kfkd_jax.report import run_page as report
from kfkd_jax.run.workspace import Workspace

DRIVER, CHROMIUM = (
  next(filter(None, map(shutil.which, names)), None)
  for names in (
    ("chromedriver",),
    ("chromium", "chromium-browser", "google-chrome"),
  )
)
if not (DRIVER and CHROMIUM):
  missing = (
    "no chromium and chromedriver on this machine: the pages were not tried in "
    "a browser"
  )
  if os.environ.get("KFKD_BROWSER") == "required":
    pytest.fail(missing, pytrace=False)
  pytest.skip(missing, allow_module_level=True)
FLAGS = (
  "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage "
  "--no-first-run --disable-background-networking --disable-component-update "
  "--disable-sync --disable-extensions"
)


class Browser:
  """A session with ChromeDriver, in its own words."""

  def __init__(self, port):
    self._root = f"http://127.0.0.1:{port}/session"
    options = {"args": FLAGS.split(), "binary": CHROMIUM}
    logs = {"browser": "ALL", "performance": "ALL"}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
    made = self._ask("", {"capabilities": {"alwaysMatch": wanted}})
    self._root += f"/{made['sessionId']}"

  def _ask(self, path, content, method="POST"):
    request = urllib.request.Request(
      self._root + path,
      json.dumps(content).encode() if content is not None else None,
      {"Content-Type": "application/json"},
      method=method,
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
      return json.loads(answer.read())["value"]

  def open(self, path):
    self._ask("/url", {"url": f"file://{path}"})

  def do(self, script):
    """The value of the body of an asynchronous function."""
    body = (
      "const done = arguments[arguments.length - 1];"
      f"(async () => {{ {script} }})().then(done, (e) => done(`${{e}}`));"
    )
    return self._ask("/execute/async", {"script": body, "args": []})

  def command(self, name, **parameters):
    content = {"cmd": name, "params": parameters}
    return self._ask("/goog/cdp/execute", content)

  def log(self, kind):
    return self._ask("/se/log", {"type": kind})

  def close(self):
    self._ask("", None, "DELETE")


@contextlib.contextmanager
def driving():
  with subprocess.Popen(
    [DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True
  ) as process:
    try:
      for line in process.stdout:
        port = re.search(r"successfully on port (\d+)", line)
        if port:
          break
      browser = Browser(port[1])
      yield browser
      browser.close()
    finally:
      process.terminate()


@pytest.fixture(scope="module")
def browser():
  with driving() as browser:
    yield browser


LONG_METHOD = max(METHODS, key=lambda m: len(method_name(m))) + "+temperature"


def make_long(folder, patch):
  """A page with names as long as they get."""
  names = (
    "Great white shark, a carcharodon, maneater",
    "_" * 40,
    "a" * 40,
    "b",
  )
  made = make_workdir(folder, patch, class_names=names)
  rows = files.read_json_lines(made.workdir / "results.jsonl")
  rows += [{**row, "method": LONG_METHOD} for row in rows[-1:]]
  files.write_json_lines(made.workdir / "results.jsonl", rows)
  return report.render(Workspace(made.config, made.workdir)).html


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """The page of one working directory, and that of several."""
  folder = epath.Path(tmp_path_factory.mktemp("pages"))
  with pytest.MonkeyPatch.context() as patch:
    made = make_workdir(folder / "work", patch)
    single = report.render(Workspace(made.config, made.workdir)).html
    page_of_long_names = make_long(folder / "long", patch)
  runs = overview.read([
    make_run(folder / "first", seed=1, note=NASTY),
    make_run(folder / ODD, seed=2, gain=-0.01),
    make_run(folder / "third", seed=3, method=NASTY),
  ])  # fmt: skip
  swept = overview.read([make_sweep(folder / "sweep", method=LONG_METHOD)])
  found = {
    "report": single,
    "long": page_of_long_names,
    "overview": overview.render(runs).html,
    "sweep": overview.render(swept).html,
  }
  for name, html in found.items():
    files.write_text(folder / f"{name}.html", html)
  return {name: folder / f"{name}.html" for name in found}


@pytest.fixture
def single(browser, pages):
  browser.open(pages["report"])
  return browser


@pytest.fixture
def several(browser, pages):
  browser.open(pages["overview"])
  return browser


@pytest.mark.parametrize("name", ["report", "overview"])
def test_nothing_is_asked_for_and_nothing_goes_wrong(browser, pages, name):
  browser.log("browser"), browser.log("performance")  # of pages before
  browser.open(pages[name])
  assert browser.log("browser") == []
  events = [
    json.loads(entry["message"])["message"]
    for entry in browser.log("performance")
  ]
  asked = [
    event["params"]["request"]["url"]
    for event in events
    if event["method"] == "Network.requestWillBeSent"
  ]
  assert asked
  assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
  assert [url for url in asked if url.startswith("file")] == [
    f"file://{pages[name]}"
  ]


VALUE = """
  const svg = document.querySelector("figure[data-name=gain] svg");
  const point = svg.querySelectorAll("circle.point")[1];
  point.scrollIntoView({block: "center"});
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
"""


def test_values_show_under_the_pointer(several):
  tip, shown, after = several.do(
    VALUE
    + """
    const box = point.getBoundingClientRect();
    const at = {clientX: box.x + box.width / 2 + 3, clientY: box.y + 5};
    svg.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
    const tip = document.querySelector(".tip");
    const seen = getComputedStyle(tip).visibility;
    const text = tip.textContent;
    svg.dispatchEvent(new PointerEvent("pointerleave"));
    return [text, seen, getComputedStyle(tip).visibility];
    """
  )
  assert tip == f"{ODD}, Knowledge Fusion: -1.0 [-3.0, +2.0]"
  assert (shown, after) == ("visible", "hidden")


def test_arrow_keys_walk_over_the_values(several):
  said = several.do(
    VALUE
    + """
    const tip = document.querySelector(".tip");
    svg.focus();
    const said = [document.activeElement === svg];
    for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "End"]) {
      svg.dispatchEvent(new KeyboardEvent("keydown", {key}));
      said.push(tip.textContent.split(",")[0]);
    }
    return said;
    """
  )
  assert said == [True, "first", ODD, "first", "third"]


def test_methods_and_runs_can_be_hidden(several):
  before, pressed, after, back = several.do(
    """
    const count = () => [...document.querySelectorAll(
      "svg [data-run='first'], tr[data-method=kf], td[data-run='first']"
    )].filter((e) => getComputedStyle(e).display !== "none").length;
    const buttons = [...document.querySelectorAll(".toggles button")];
    const named = (name) => buttons.find((b) => b.textContent === name);
    const before = count();
    named("first").click();
    named("Knowledge Fusion").click();
    const pressed = named("first").getAttribute("aria-pressed");
    const after = count();
    buttons.filter((b) => b.textContent === "All").forEach((b) => b.click());
    return [before, pressed, after, count()];
    """
  )
  assert before == back > 10
  assert (pressed, after) == ("false", 0)


SORTED = """
  const table = document.querySelector("table[data-name=results]");
  const button = table.querySelector("th[data-sort='1'] button");
  const values = () => [...table.tBodies[0].rows].map(
    (row) => Number(row.cells[1].dataset.value));
  const found = [values()];
  for (let i = 0; i < 3; i += 1) {
    button.click();
    found.push([button.parentNode.getAttribute("aria-sort"), values()]);
  }
  return found;
"""


def test_tables_sort_down_up_and_back(single):
  first, down, up, back = single.do(SORTED)
  assert down == ["descending", sorted(first, reverse=True)]
  assert up == ["ascending", sorted(first)]
  assert back == [None, first]
  assert first not in (sorted(first), sorted(first, reverse=True))


def test_tables_download_as_shown(several):
  text, markdown = several.do(
    """
    const table = document.querySelector("table[data-name=all-numbers]");
    document.querySelectorAll(".toggles button[value=third]")[0].click();
    const content = contentOf(table);
    return [asCsv(content), asMarkdown(content)];
    """
  )
  rows = list(csv.DictReader(io.StringIO(text)))
  assert [r["Run"] for r in rows] == ["first"] * 2 + [ODD] * 2
  assert float(rows[1]["Accuracy %"]) == pytest.approx(0.75)
  assert float(rows[1]["Cost, networks infer"]) == 7
  assert markdown.count("\n") == 6


def test_downloaded_tables_run_nothing(single):
  text, markdown = single.do(
    """
    const lines = [["a"], ["=1+1"], ["+x"], [" @x"], ["-0.5"], ["+1.2"],
      ["<b>[x](y)`|"], ["a_b _c_"]];
    return [asCsv(lines), asMarkdown(lines)];
    """
  )
  assert text.splitlines() == [
    "a", "'=1+1", "'+x", "' @x", "-0.5", "+1.2", "<b>[x](y)`|", "a_b _c_",
  ]  # fmt: skip
  assert "| &lt;b&gt;\\[x\\](y)\\`\\| |" in markdown
  assert "| a_b \\_c\\_ |" in markdown


def test_figures_download_as_pictures(several):
  svg, kind, size, header = several.do(
    """
    const svg = document.querySelector("figure[data-name=gain] svg");
    const blob = await asPicture(svg);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    return [asFile(svg), blob.type, blob.size, [...bytes.slice(0, 4)]];
    """
  )
  assert "var(--" not in svg
  assert "currentColor" not in svg
  assert 'class="point' not in svg
  assert kind == "image/png"
  assert bytes(header) == b"\x89PNG"
  assert size > 5000


@pytest.fixture
def wide(browser):
  """Makes the window so many pixels wide."""

  def set_width(width):
    browser.command(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
    )  # fmt: skip

  yield set_width
  browser.command("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("name", ["report", "long", "overview", "sweep"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_their_width(browser, pages, wide, name, width):
  wide(width)
  browser.open(pages[name])
  assert browser.do("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
  ("name", "table", "column"), [("long", "results", 3), ("sweep", "means-1", 2)]
)
def test_a_phone_shows_the_interval_of_every_method(
  browser, pages, wide, name, table, column
):
  wide(390)
  browser.open(pages[name])
  edge, ends = browser.do(
    f"""
    const table = document.querySelector("table[data-name='{table}']");
    const box = table.closest(".scroll").getBoundingClientRect();
    return [box.right, [...table.tBodies[0].rows].map(
      (row) => row.cells[{column}].getBoundingClientRect().right)];
    """
  )
  assert len(ends) > 1 and max(ends) <= edge


def test_dark_is_dark_and_paper_is_white(browser, pages):
  ground = {}
  for media, scheme in (
    ("screen", "dark"),
    ("screen", "light"),
    ("print", "dark"),
  ):
    browser.command(
      "Emulation.setEmulatedMedia",
      media=media,
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    browser.open(pages["report"])
    ground[media, scheme] = browser.do(
      "return getComputedStyle(document.body).backgroundColor"
    )
  browser.command("Emulation.setEmulatedMedia", media="", features=[])
  white = "rgb(255, 255, 255)"
  assert ground["screen", "light"] == ground["print", "dark"] == white
  assert ground["screen", "dark"] == "rgb(20, 23, 27)"
