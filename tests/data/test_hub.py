"""Hub ids where the network, a proxy or the cache is not as it should be: one sentence with the cause, or the cache."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.rows.hub import ELSEWHERE, PROXIES
from tests import tiny

SHA = "a" * 40
FINDS = """
import json, os, sys, traceback
import httpx
from system import cli
from data.rows.hub import find_model

for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):  # before the hub's library was imported, which reads the environment once
        os.environ.clear()
        os.environ.update(asked["env"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 0
        try:
            cli.run(lambda argv: print(find_model("o/m")))
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, as the hub would have it: with Meta's own files in a subfolder."""
    folder = tiny.write_model(tmp_path_factory.mktemp("hub") / "m", ["some words"] * 20)
    (folder / "original").mkdir()
    (folder / "original/params.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    return folder


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_cache(home, model, *, without=()):
    """The hub's cache as its own library leaves it."""
    root = home / "hub/models--o--m"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(SHA)
    (root / "trees").mkdir()
    tree = {name: {"size": len(content), "blob_id": "b" * 40} for name, content in files_of(model).items()}
    (root / f"trees/{SHA}.json").write_text(json.dumps({"format_version": 1, "files": tree}))
    for name, content in files_of(model).items():
        if not name.startswith(tuple(without)):
            path = root / "snapshots" / SHA / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root / "snapshots" / SHA


class Hub(BaseHTTPRequestHandler):
    """What of the hub's API a download takes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def out(self, code, body, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path.split("?")[0]
        server.asked.append(path)
        if server.mode in ("login", "500", "gated"):
            return {
                "login": lambda: self.out(200, b"<html>please log in</html>", Content_Type="text/html"),
                "500": lambda: self.out(500, b"oops"),
                "gated": lambda: self.out(
                    403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access to model o/m is restricted"
                ),
            }[server.mode]()
        files = files_of(server.model)
        if "/tree/" in path:
            tree = [{"type": "file", "oid": "b" * 40, "size": len(c), "path": n} for n, c in files.items()]
            return self.out(200, json.dumps(tree).encode(), Content_Type="application/json")
        if path.startswith("/api/models/"):
            info = {"id": "o/m", "modelId": "o/m", "sha": SHA, "private": False, "tags": [], "siblings": []}
            return self.out(200, json.dumps(info).encode(), Content_Type="application/json")
        name = path.partition(f"/resolve/{SHA}/")[2]
        if server.mode == "cut" and name == "model.safetensors" and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.send_header("ETag", '"x"')
            self.send_header("X-Repo-Commit", SHA)
            self.end_headers()
            self.wfile.write(files[name][:1000])
            self.close_connection = True
            return None
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self.out(200, files[name], ETag=etag, X_Repo_Commit=SHA)


@contextmanager
def hub(mode, model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.mode, server.model, server.asked = mode, model, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(said):
    """A port that says one thing to whoever comes, and hangs up; None: that hangs up at once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(said or b"")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def find(tmp_path_factory):
    """A function that looks for the model o/m in a process of its own, and gives what became of that."""
    folder = tmp_path_factory.mktemp("find")
    away = (*PROXIES, "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_PROXY", "no_proxy")
    kept = {k: v for k, v in tiny.environment().items() if k not in away}
    finding = subprocess.Popen(
        [sys.executable, "-c", FINDS], env=kept, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def ask(home, **variables):
        env = kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | variables
        asked = {"env": env, "out": str(folder / "out"), "err": str(folder / "err")}
        finding.stdin.write(json.dumps(asked) + "\n")
        finding.stdin.flush()
        code = int(finding.stdout.readline())
        return subprocess.CompletedProcess([], code, *((folder / name).read_text() for name in ("out", "err")))

    yield ask
    finding.stdin.close()
    assert finding.wait(timeout=60) == 0
    finding.stdout.close()


def taken(done):
    """The names of the files that were found, one sentence at most having been said."""
    assert done.returncode == 0 and len(done.stderr.splitlines()) <= 1, done.stderr
    folder = done.stdout.strip()
    return sorted(os.listdir(folder)), done.stderr.strip()


def test_only_what_is_needed_is_asked_for(find, model, tmp_path):
    with hub("ok", model) as (server, base):
        names, said = taken(find(tmp_path / "hf", HF_ENDPOINT=base))
    assert names == sorted({p.name for p in model.iterdir()} - {"original"}) and not said
    assert not any("original" in path for path in server.asked if "/tree/" not in path)


@pytest.mark.parametrize(
    "name", ["original/params.json", "onnx/config.json", "a/b.json", "addition/x.json", "z/y/x.json"]
)
def test_what_stands_in_other_subfolders_is_left(name):
    from fnmatch import fnmatch

    assert any(fnmatch(name, pattern) for pattern in ELSEWHERE)
    assert not any(fnmatch(f"additional_chat_templates/{name[-6:]}", pattern) for pattern in ELSEWHERE)
    assert not any(fnmatch("tokenizer.json", pattern) for pattern in ELSEWHERE)


@pytest.mark.parametrize(
    "variables", [{}, {"ALL_PROXY": "socks5://127.0.0.1:7890"}, {"HTTPS_PROXY": "http://127.0.0.1:9"}]
)
def test_offline_a_cache_that_has_all_asks_nobody(find, variables, model, tmp_path):
    write_cache(tmp_path, model, without=("original",))
    names, said = taken(find(tmp_path, HF_HUB_OFFLINE="1", **variables))
    assert "model.safetensors" in names and not said
    nothing = find(tmp_path / "empty", HF_HUB_OFFLINE="1", **variables)
    assert nothing.returncode == 2 and len(nothing.stderr.splitlines()) == 1
    assert "not in the hub's cache; unset HF_HUB_OFFLINE to download it" in nothing.stderr


FAULTS = {
    "login": "what answers at {} is not the hub, perhaps a page to log in to the network",
    "500": r"{} answers 500 \(.*\)",
    "cut": r"the connection to {} was cut \(.*\)|{} cannot be asked \(.*\)",
}


@pytest.mark.parametrize("mode", ["login", "500", pytest.param("cut", marks=pytest.mark.slow)])  # which is tried again
def test_a_hub_that_fails_is_told_and_the_cache_taken_where_it_has_all(find, mode, model, tmp_path):
    with hub(mode, model) as (_, base):
        lost = find(tmp_path / "empty", HF_ENDPOINT=base)
        if mode != "cut":  # who has all of it downloads nothing
            write_cache(tmp_path, model)
            names, said = taken(find(tmp_path, HF_ENDPOINT=base))
            assert "model.safetensors" in names
            assert re.fullmatch(f"o/m: {FAULTS[mode].format(base)}; the copy of an earlier download is used: .*", said)
    cause = FAULTS[mode].replace("{}", re.escape(base))
    assert lost.returncode == 2 and "Traceback" not in lost.stderr
    assert re.fullmatch(
        f"error: o/m: no such file or folder, and ({cause}); fix that, or download it elsewhere and give its folder",
        lost.stderr.splitlines()[-1],
    )


def test_a_model_that_the_hub_refuses_is_refused(find, model, tmp_path):
    with hub("gated", model) as (_, base):
        done = find(tmp_path, HF_ENDPOINT=base)
    assert done.returncode == 2 and "the hub refuses it (" in done.stderr and "log in if it is gated" in done.stderr


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "the proxy that HTTPS_PROXY names refuses to connect to the hub (4",
        ),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "the proxy that HTTPS_PROXY names refuses",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the "),
        (None, "the "),
    ],
)
def test_a_proxy_that_refuses_is_named(find, answer, cause, model, tmp_path):
    with answering(answer) as base:
        lost = find(tmp_path / "empty", HTTPS_PROXY=base)
        write_cache(tmp_path, model)
        names, said = taken(find(tmp_path, HTTPS_PROXY=base))
    assert lost.returncode == 2 and len(lost.stderr.splitlines()) == 1
    assert f"no such file or folder, and {cause}" in lost.stderr
    assert "model.safetensors" in names and said.startswith(f"o/m: {cause}")


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        (
            {"ALL_PROXY": "socks5://127.0.0.1:9"},
            "ALL_PROXY names a SOCKS proxy, which needs pip install 'httpx[socks]'",
        ),
        (
            {"HF_TOKEN": "hf_ü“"},
            "the token of the hub (HF_TOKEN, or what hf auth login has left) has characters that no header can have",
        ),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached ("),
        ({"HF_HOME": "/dev/null/hf"}, "the hub's cache cannot be used (/dev/null/hf"),
    ],
)
def test_what_the_environment_has_wrong_is_named(find, variables, cause, model, tmp_path):
    with hub("ok", model) as (_, base):
        done = find(tmp_path, **({"HF_ENDPOINT": base} | variables))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"error: o/m: no such file or folder, and {cause}" in done.stderr


# --- data sets -----------------------------------------------------------------------------------------------------

FILES = """
import os, sys
from pathlib import Path
from data.rows.sources import files_of
from system import InputError

for name in sys.argv[1:]:
    try:
        print(name, *sorted(Path(path).name for path in files_of(name)))
    except InputError as fault:
        print(fault)
"""


def test_a_data_sets_id_with_a_split_and_without_is_found(tmp_path):
    """The released CLAIR pairs have a train and a test split; UltraFeedback's files name none."""
    for name, files in (
        ("o/pairs", ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]),
        ("o/answers", ["flan.jsonl", "sharegpt.jsonl"]),
        ("o/parts", ["a_test.jsonl", "b_test.jsonl"]),
    ):
        root = tmp_path / f"hub/datasets--{name.replace('/', '--')}"
        for path in files:
            (root / "snapshots" / SHA / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "snapshots" / SHA / path).write_text("")
        (root / "refs").mkdir()
        (root / "refs/main").write_text(SHA)
    asked = ["o/pairs", "o/pairs:train", "o/pairs:test", f"o/pairs@{SHA}:test", "o/answers", "o/pairs:dev", "o/parts"]
    env = tiny.environment() | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FILES, *asked], env=env, capture_output=True, text=True, timeout=100, check=True
    )
    train, test = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"
    assert done.stdout.splitlines() == [
        f"o/pairs {train}",
        f"o/pairs:train {train}",
        f"o/pairs:test {test}",
        f"o/pairs@{SHA}:test {test}",
        "o/answers flan.jsonl sharegpt.jsonl",
        "o/pairs: has the splits test, train; name one, such as o/pairs:train",
        "o/parts: has the splits a_test, b_test; name one, such as o/parts:a_test",
    ]


def test_a_tokenizer_is_found_by_its_models_id(model, tmp_path):
    """By the command that measures how much pairs differ."""
    write_cache(tmp_path, model)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "some words", "rejected": "some"}])
    env = tiny.environment() | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "data.contrast", str(rows), "--tokenizer", "o/m"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and "tokens" in done.stdout, done.stderr
    refused = subprocess.run([*command[:-1], "o/other"], env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "o/other: no such" in refused.stderr
