"""A stand-in for the hub's API on this machine: repositories in memory, commits, and blobs sent by the LFS protocol."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 10_000
"""Bytes from which on a file is sent as a blob of its own."""
COMMIT = "0" * 39


class Hub:
    """What the hub holds, what it was asked, and how it fails."""

    def __init__(self):
        self.repos, self.blobs, self.asked = {}, {}, []
        self.fail = lambda verb, path: None
        """(status, message) of an answer in place of the real one."""
        self.lock = threading.Lock()

    def add(self, repo, files=(), *, private=True):
        self.repos[repo] = {"private": private, "files": dict(files), "commits": []}


@contextmanager
def serving():
    """A hub, and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def _answer(self, found, status=200):
        body = json.dumps(found).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", found["error"])
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _any(self):
        hub, path = self.hub, self.path.partition("?")[0]
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with hub.lock:
            hub.asked.append((self.command, path))
        if self.headers.get("Authorization") != "Bearer hf_test" and not path.startswith("/blob/"):
            return self._answer({"error": "Invalid credentials"}, 401)
        if fault := hub.fail(self.command, path):
            return self._answer({"error": fault[1]}, fault[0])
        for pattern, act in (
            (r"PUT /blob/(\w+)", self._put),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (r"GET /api/models/([\w.-]+/[\w.-]+)(?:/revision/main)?", self._info),
            (r"POST /api/models/([\w.-]+/[\w.-]+)/preupload/main", self._preupload),
            (r"POST /([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
            (r"POST /api/models/([\w.-]+/[\w.-]+)/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return act(content, *match.groups())
        return self._answer({"error": f"no such address: {self.command} {path}"}, 400)

    do_GET = do_POST = do_PUT = _any

    def _create(self, content):
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.add(name, private=asked.get("visibility", "private") == "private" and asked.get("private", True))
        self._answer({"url": f"{self.hub.address}/{name}", "id": name, "name": name})

    def _validate(self, content):
        card = json.loads(content)["content"]
        errors = [] if card.startswith("---\n") else [{"message": "no metadata"}]
        self._answer({"errors": errors, "warnings": [], "error": "no metadata"}, 400 if errors else 200)

    def _info(self, content, repo):
        if repo not in self.hub.repos:
            return self._answer({"error": "Repository not found"}, 404)
        held = self.hub.repos[repo]
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": git_blob(data)} for name, data in held["files"].items()
        ]
        found = {"id": repo, "private": held["private"], "siblings": siblings, "sha": COMMIT + "0", "tags": []}
        return self._answer(found)

    def _preupload(self, content, repo):
        files = json.loads(content)["files"]
        held = self.hub.repos[repo]["files"]
        found = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": git_blob(held[one["path"]]) if one["path"] in held and one["size"] < LARGE else None,
            }
            for one in files
        ]
        self._answer({"files": found})

    def _batch(self, content, repo):
        objects = []
        for one in json.loads(content)["objects"]:
            made = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.blobs:
                made["actions"] = {"upload": {"href": f"{self.hub.address}/blob/{one['oid']}", "header": {}}}
            objects.append(made)
        self._answer({"transfer": "basic", "objects": objects})

    def _put(self, content, oid):
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self._answer({})

    def _commit(self, content, repo):
        held = self.hub.repos[repo]
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                held["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held["files"][value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del held["files"][value["path"]]
        held["commits"].append(lines[0]["value"]["summary"])
        url = f"{self.hub.address}/{repo}/commit/{COMMIT}1"
        self._answer({"commitUrl": url, "commitOid": COMMIT + "1", "success": True})
