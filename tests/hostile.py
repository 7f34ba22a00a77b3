"""Names that would run, if a reader let them, and such a reader."""

import html.parser

from markdown_it import MarkdownIt

HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "a\n\n# b\n- c",
  "[click](javascript:alert(1))",
  "![x](https://example.org/x.png)",
  "`code` and ``more``",
  "a|b|c",
  "&lt;script&gt;",
  "\\<b>\\",
  "*bold* _and_ __init__ ~~gone~~",
  "<!-- the rest",
  "\x1b[2J\u202egnp.exe",
]
FORMULAS = [
  "=cmd|' /C calc'!A0",
  "+1+1",
  "-2+3",
  "@SUM(1)",
  "\t=1",
  "\r=1",
  " =1",
  "\n=1",
  "＝1",
]


class Read(html.parser.HTMLParser):
  """The tags of a page, and its text."""

  def __init__(self, content):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(content)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_data(self, data):
    self.text += data

  def handle_comment(self, data):
    self.tags.append(("comment", data))


def rendered(markdown):
  """As a reader that lets HTML through shows it."""
  return Read(MarkdownIt("commonmark").enable("table").render(markdown))
