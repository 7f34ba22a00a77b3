"""A working directory in a bucket, on a bucket made for the test.

Files go through etils to an `fsspec` file system that behaves as an object
store: no folders of their own, no appending, whole objects. TensorStore, which
writes the arrays of checkpoints itself, is pointed to a small HTTP server in
front of the same objects.
"""

import http.server
import json
import re
import sys
import threading
import types
import urllib.parse

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations import memory

from kfkd_jax import checkpoints, cli, files, lock
from kfkd_jax.predictions import PredictionStore


class Bucket(memory.MemoryFileSystem):
  """Objects by name; folders are there while they hold something."""

  protocol = ("gcs", "gs")
  store = {}  # noqa: RUF012
  pseudo_dirs = [""]  # noqa: RUF012
  cachable = False

  @classmethod
  def _strip_protocol(cls, path):
    path = re.sub(r"^(gcs|gs)://", "/", str(path))
    return "/" + path.strip("/") if path.strip("/") else ""

  def mkdir(self, path, create_parents=True, **kwargs):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def open(self, path, mode="rb", **kwargs):
    if "a" in mode:
      raise NotImplementedError("objects cannot be appended to")
    return super().open(path, mode, **kwargs)


class Server(http.server.BaseHTTPRequestHandler):
  """As much of a bucket's JSON interface as TensorStore asks for."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    path, query = self._parsed()
    name = path.partition("/o/")[2]
    if not name:
      prefix = f"/bucket/{query.get('prefix', '')}"
      found = sorted(n for n in Bucket.store if n.startswith(prefix))
      self._answer([{"name": n[8:], "generation": "1"} for n in found])
    elif f"/bucket/{name}" not in Bucket.store:
      self._send(404, b"{}")
    else:
      self._content(Bucket.store[f"/bucket/{name}"].getvalue())

  def do_POST(self):
    _, query = self._parsed()
    body = self.rfile.read(int(self.headers["Content-Length"]))
    Bucket().pipe_file(f"/bucket/{query['name']}", body)
    content = {"name": query["name"], "generation": str(_stamp(query["name"]))}
    self._send(200, json.dumps(content).encode())

  def do_DELETE(self):
    path, _ = self._parsed()
    Bucket.store.pop(f"/bucket/{path.partition('/o/')[2]}", None)
    self._send(204, b"")

  def log_message(self, *unused):
    pass

  def _parsed(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    return urllib.parse.unquote(url.path), query

  def _answer(self, items):
    self._send(200, json.dumps({"items": items}).encode())

  def _content(self, content):
    name = self._parsed()[0].partition("/o/")[2]
    asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
    headers = {"x-goog-generation": _stamp(name)}
    if not asked:
      self._send(200, content, headers)
      return
    first, last = int(asked[1]), int(asked[2] or len(content) - 1)
    part = content[first : last + 1]
    last = first + len(part) - 1
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    self._send(206, part, headers)

  def _send(self, status, content, headers=()):
    self.send_response(status)
    for name, value in dict(headers).items():
      self.send_header(name, str(value))
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def _stamp(name):
  """A number that changes whenever an object is written."""
  return int(Bucket.store[f"/bucket/{name}"].created.timestamp() * 1e6)


@pytest.fixture
def bucket(monkeypatch):
  known = fsspec.registry.get("gcs")
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()
  server = http.server.ThreadingHTTPServer(("localhost", 0), Server)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  monkeypatch.setenv(
    "TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}"
  )
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
  # Orbax asks Google's client whether the bucket has folders; this has none.
  client = types.ModuleType("google.cloud.storage")
  client.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: None)
  monkeypatch.setitem(sys.modules, "google.cloud.storage", client)
  yield epath.Path("gs://bucket")
  server.shutdown()
  server.server_close()
  thread.join()
  Bucket.store.clear()
  if known is not None:
    fsspec.register_implementation("gcs", known, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_files_are_written_whole_and_lines_added(bucket):
  files.write_json(bucket / "w" / "a.json", {"x": 1})
  files.write_json(bucket / "w" / "a.json", {"x": 2})
  assert files.read_json(bucket / "w" / "a.json") == {"x": 2}
  for epoch in (1, 2):
    files.append_json_line(bucket / "w" / "m.jsonl", {"epoch": epoch})
  rows = files.read_json_lines(bucket / "w" / "m.jsonl")
  assert [row["epoch"] for row in rows] == [1, 2]
  assert sorted(p.name for p in (bucket / "w").iterdir()) == [
    "a.json",
    "m.jsonl",
  ]


def test_no_lock_is_held_in_a_bucket(bucket):
  with lock.held(bucket / "w"), lock.held(bucket / "w"):
    assert not (bucket / "w" / lock.NAME).exists()


def test_predictions_are_kept(bucket):
  store = PredictionStore.create(
    bucket / "p", np.zeros(3, int), np.arange(3), num_classes=2
  )
  store.write(1, np.full((3, 2), 0.5))
  store.write(2, np.full((3, 2), 0.5))
  store.truncate(1)
  assert PredictionStore(bucket / "p").epochs == [1]


def test_checkpoints_are_kept(bucket):
  tree = {"w": np.arange(6.0).reshape(2, 3)}
  with checkpoints.Checkpoints(bucket / "h") as history:
    for step in (1, 2, 3):
      history.save(step, tree)
    history.delete_after(2)
  with checkpoints.Checkpoints(bucket / "h") as history:
    assert history.steps() == [1, 2]
    np.testing.assert_array_equal(history.restore(1, tree)["w"], tree["w"])
  with checkpoints.Checkpoints(bucket / "r", keep=2) as resume:
    for step in (1, 2, 3):
      resume.save(step, tree)
  with checkpoints.Checkpoints(bucket / "r", keep=2) as resume:
    assert resume.steps() == [2, 3]


TINY = (
  "--config.data.name=synthetic/num_classes=3,num_train=60,num_test=30",
  "--config.selection.num=20",
  "--config.train.epochs=2",
  "--config.train.batch_size=16",
  "--config.model.name=mlp",
  "--config.model.width=4",
  "--config.augment.pad=0",
  "--config.augment.cutout=0",
  "--config.compare.independent=1",
  "--config.compare.bootstrap_samples=100",
  "--config.distill.teachers=('kf',)",
  "--config.runtime.compilation_cache=False",
  "--debug",
)


@pytest.mark.slow
def test_a_whole_run_in_a_bucket(bucket, capsys):
  assert cli.main(["run", f"--workdir={bucket}/w", *TINY]) == 0
  assert (bucket / "w" / "report" / "index.html").exists()
  capsys.readouterr()
  assert cli.main(["run", f"--workdir={bucket}/w"]) == 0
  assert "Nothing to do" in capsys.readouterr().out
  (bucket / "w" / "runs" / "teacher" / "finished.json").unlink()
  assert cli.main(["run", f"--workdir={bucket}/w", *TINY]) == 0
