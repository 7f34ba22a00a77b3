"""Pushed to a server that speaks the Hub's language, and fetched from it."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath
from test_from_pretrained import IMAGES, write

import kfkd_jax
from kfkd_jax import cli
from kfkd_jax.export import hub
from kfkd_jax.run import seals


class Server(http.server.ThreadingHTTPServer):
  """Repositories in memory: a list of commits, each its files by name."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Answers)
    self.commits = {"me/taken": [{"kf.jaxexp": b"old", "notes.md": b"mine"}]}
    self.private = {}
    self.address = f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
  """What the Hub answers to the few requests that are made."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *arguments):
    pass

  def say(self, value, status=200, headers=()):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    self.send_response(status)
    for name, text in {
      "Content-Length": str(len(content)),
      **dict(headers),
    }.items():
      self.send_header(name, text)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def do_POST(self):
    content = self.rfile.read(int(self.headers["Content-Length"]))
    if self.headers["Authorization"] != "Bearer good":
      self.say({"error": "Invalid credentials"}, 401)
    elif self.path == "/api/repos/create":
      self.create(json.loads(content))
    elif self.path == "/api/validate-yaml":
      self.say({"errors": [], "warnings": []})
    elif "/preupload/" in self.path:
      names = [file["path"] for file in json.loads(content)["files"]]
      self.say({
        "files": [
          {"path": n, "uploadMode": "regular", "shouldIgnore": False}
          for n in names
        ]
      })  # fmt: skip
    else:
      self.commit(content)

  def create(self, wanted):
    repo = f"{wanted['organization']}/{wanted['name']}"
    if wanted["organization"] == "gone":
      self.close_connection = True  # without a word
      return
    if wanted["organization"] != "me":
      self.say({"error": "You may not create there"}, 403)
      return
    there = repo in self.server.commits
    self.server.commits.setdefault(repo, [{}])
    if not there:
      private = wanted.get("private") or wanted.get("visibility") == "private"
      self.server.private[repo] = bool(private)
    said = {"url": f"{self.server.address}/{repo}", "name": repo, "id": repo}
    self.say(said, 409 if there else 200)

  def commit(self, content):
    repo = re.match("/api/models/(.*)/commit/main", self.path)[1]
    files = dict(self.server.commits[repo][-1])
    for line in content.splitlines():
      what, value = (json.loads(line)[key] for key in ("key", "value"))
      if what == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif what == "deletedFile":
        del files[value["path"]]
    self.server.commits[repo].append(files)
    sha = self.sha(repo)
    url = f"{self.server.address}/{repo}/commit/{sha}"
    self.say({"commitUrl": url, "commitOid": sha, "success": True})

  def sha(self, repo):
    return f"{len(self.server.commits[repo]):040x}"

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.partition("?")[0]
    found = re.fullmatch(
      r"/(?:api/models/)?([\w-]+/[\w-]+)(?:/(\w+)/(\w+))?/?(.*)", path
    )
    repo, what, revision, name = found.groups()
    if repo not in self.server.commits:
      self.say({"error": "none"}, 404, {"X-Error-Code": "RepoNotFound"})
      return
    commits = self.server.commits[repo]
    shas = {f"{n:040x}": n for n in range(1, len(commits) + 1)}
    number = shas.get(
      revision, 0 if revision not in (None, "main") else len(shas)
    )
    if not number:
      self.say({"error": "none"}, 404, {"X-Error-Code": "RevisionNotFound"})
      return
    files, sha = commits[number - 1], f"{number:040x}"
    if what == "resolve":
      etag = hashlib.sha1(files[name]).hexdigest()
      self.say(files[name], headers={"X-Repo-Commit": sha, "ETag": f'"{etag}"'})
    elif what == "tree":
      self.say([
        {
          "type": "file", "path": n, "size": len(c),
          "oid": hashlib.sha1(c).hexdigest(),
        }
        for n, c in files.items()
      ])  # fmt: skip
    else:
      siblings = [{"rfilename": name} for name in files]
      self.say({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings})


@contextlib.contextmanager
def served():
  server = Server()
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def export(workdir, names=("kf_kd.safetensors", "README.md")):
  """What `kfkd export` leaves, and a file that it did not make."""
  folder = workdir / "export"
  folder.mkdir(parents=True)
  write(folder)
  for name in names:
    (folder / name).write_text("---\nlibrary_name: kfkd-jax\n---\n")
  names = [*names, "config.json", "model.safetensors"]
  seals.write_sums(epath.Path(folder), names)
  (folder / "diary.txt").write_text("mine")
  return workdir


SCRIPT = """
import contextlib, io, json, os, sys
import numpy as np
import kfkd_jax
from kfkd_jax import cli

images = np.load(sys.argv[1])
said = {}
for name, (token, *arguments) in json.loads(sys.argv[2]).items():
  os.environ["HF_TOKEN"] = token
  with contextlib.redirect_stdout(io.StringIO()) as out:
    with contextlib.redirect_stderr(io.StringIO()) as error:
      code = cli.main(arguments)
  said[name] = [code, out.getvalue(), error.getvalue()]
os.environ["HF_TOKEN"] = "good"
for name, (repo, revision) in json.loads(sys.argv[3]).items():
  try:
    model = kfkd_jax.from_pretrained(repo, revision=revision)
    said[name] = model.predict(images).tolist()
  except ValueError as error:
    said[name] = str(error)
print(json.dumps(said))
"""


def run(folder, server, pushes, fetches):
  """Pushes and fetches in a process of its own: the library reads the address
  of the Hub when it is imported."""
  np.save(folder / "images.npy", IMAGES)
  done = subprocess.run(
    [
      sys.executable, "-c", SCRIPT, str(folder / "images.npy"),
      json.dumps(pushes), json.dumps(fetches),
    ],
    env={
      **os.environ,
      "HF_ENDPOINT": server.address,
      "HF_HOME": str(folder / "home"),
      "PYTHONPATH": os.pathsep.join(sys.path),
    },
    check=False,
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
  """A server after some pushes, what they said, and what was fetched."""
  pytest.importorskip("huggingface_hub")
  folder = tmp_path_factory.mktemp("hub")
  workdir = f"--workdir={export(folder / 'w')}"
  pushes = {
    "first": ["good", "push", "me/tiny", workdir, "--private"],
    "again": ["good", "push", "me/tiny", workdir],
    "taken": ["good", "push", "me/taken", workdir, "--private"],
    "foreign": ["good", "push", "you/tiny", workdir],
    "misnamed": ["good", "push", "me/ti ny", workdir],
    "silent": ["good", "push", "gone/tiny", workdir],
    "refused": ["bad", "push", "me/tiny", workdir],
    "no token": ["", "push", "me/tiny", workdir],
  }
  fetches = {
    "main": ("me/tiny", None),
    "commit": ("me/tiny", f"{2:040x}"),
    "missing": ("me/missing", None),
    "no revision": ("me/tiny", "v9"),
    "no model": ("me/empty", None),
  }
  with served() as server:
    server.commits["me/empty"] = [{"notes.md": b"mine"}]
    said = run(folder, server, pushes, fetches)
  return folder, server, said


def test_all_that_was_exported_is_there_and_nothing_else(pushed):
  folder, server, said = pushed
  code, out, error = said["first"]
  assert (code, error) == (0, "")
  files = server.commits["me/tiny"][-1]
  assert sorted(files) == [
    "README.md", "SHA256SUMS", "config.json", "kf_kd.safetensors",
    "model.safetensors",
  ]  # fmt: skip
  for name, content in files.items():
    assert content == (folder / "w" / "export" / name).read_bytes()
    assert name in out
  assert f"5 files of {folder / 'w' / 'export'}" in out
  assert f"{server.address}/me/tiny" in out
  assert server.private == {"me/tiny": True}


def test_models_of_an_earlier_export_go_and_what_else_is_there_stays(pushed):
  _, server, said = pushed
  assert said["taken"][0] == 0
  files = server.commits["me/taken"][-1]
  assert "notes.md" in files and "kf.jaxexp" not in files
  assert said["again"][0] == 0


def test_what_was_pushed_is_fetched_and_predicts(pushed):
  folder, _, said = pushed
  model = kfkd_jax.from_pretrained(folder / "w" / "export")
  for name in ("main", "commit"):
    np.testing.assert_allclose(said[name], model.predict(IMAGES), atol=1e-6)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("foreign", r"you/tiny cannot be pushed to: .*403.*; the token may not"),
    ("misnamed", r"me/ti ny cannot be pushed to: Repo id must"),
    ("refused", r"me/tiny cannot be pushed to: .*401.*; log in with `hf auth"),
    (
      "no token",
      r"me/tiny cannot be pushed to: there is no token; log in with",
    ),
    ("silent", r"gone/tiny cannot be pushed to: .*[Dd]isconnected"),
  ],
)
def test_a_push_that_fails_says_why_in_a_line(pushed, name, message):
  code, out, error = pushed[2][name]
  assert (code, out) == (2, "")
  assert re.fullmatch(f"kfkd: {message}.*\n", error), error


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("missing", r"me/missing cannot be fetched: .*404.*; there is no such rep"),
    ("no revision", r"me/tiny cannot be fetched: .*404.* or revision"),
    ("no model", r"me/empty holds no config\.json; `kfkd export` writes it"),
  ],
)
def test_a_fetch_that_fails_says_why_in_a_line(pushed, name, message):
  assert re.match(message, pushed[2][name])
  assert "\n" not in pushed[2][name]


# Without the package.


def test_the_package_is_asked_for_by_name(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  workdir = f"--workdir={export(tmp_path / 'w')}"
  assert cli.main(["push", "me/tiny", workdir]) == 2
  said = capsys.readouterr().err
  asked = "huggingface_hub is not installed: pip install 'kfkd-jax[hub]'"
  assert asked in said
  with pytest.raises(ImportError, match=re.escape(asked)):
    kfkd_jax.from_pretrained("me/tiny")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda f: (f / "SHA256SUMS").unlink(),
      "holds no export; run `kfkd export",
    ),
    (lambda f: (f / "README.md").write_text("x"), "README.md is not what was"),
    (
      lambda f: (f / "SHA256SUMS").write_text("x"),
      "SHA256SUMS is not what was",
    ),
    (
      lambda f: seals.write_sums(epath.Path(f), ["README.md"]),
      r"has no config\.json, as of an earlier version; remove the folder",
    ),
  ],
)
def test_only_a_whole_export_is_sent(tmp_path, damage, message):
  workdir = export(tmp_path / "w")
  damage(workdir / "export")
  with pytest.raises(ValueError, match=message):
    hub.push("me/tiny", workdir, private=False)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "push needs one REPO, such as `kfkd push OWNER/NAME`"),
    (["a/b", "c/d"], "push needs one REPO"),
    (["a/b", "--config.seed=1"], "push takes no --config"),
    (["a/b"], "none/export holds no export; run `kfkd export` first"),
  ],
)
def test_mistakes_of_the_command(arguments, message, capsys):
  assert cli.main(["push", "--workdir=none", *arguments]) == 2
  assert message in capsys.readouterr().err
