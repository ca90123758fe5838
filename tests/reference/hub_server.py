"""A server on 127.0.0.1 that speaks what of the Hugging Face hub's protocol its clients use.

Files (HEAD and GET with Range, ETag, X-Linked-Etag and X-Repo-Commit, large ones by a redirect),
folders, and commits with LFS uploads. Connections can be cut at any byte.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

LARGE = 1000  # bytes from which on a file is in LFS, as safetensors always are


class Hub:
    """The repositories, and what the server has been asked for."""

    def __init__(self):
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {"plain/plain": []}
        self.objects: dict[str, bytes] = {}  # in LFS
        self.cuts: dict[str, list[int]] = {}  # by path, the bytes before which connections end
        self.cut = "close"  # how they end; "reset"
        self.ranges = True  # whether Range is honoured
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""
        self.cdn = ""  # another host, to which clients must not send their token
        self.lock = threading.Lock()

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Adds files to a repository; returns the commit."""
        commits = self.repositories.setdefault(name, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        oid = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits.append((oid, content))
        for data in files.values():
            self.objects[hashlib.sha256(data).hexdigest()] = data
        return oid

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a revision."""
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)

    def count(self, method: str) -> int:
        """How many requests there were."""
        return sum(found == method for found, _, _ in self.requests)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve():
    """Runs a hub while the context is open."""
    hub = Hub()

    class BoundHandler(Handler):
        pass

    BoundHandler.hub = hub
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle()

    def do_HEAD(self):
        self._route()

    do_GET = do_POST = do_PUT = do_HEAD

    def _route(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._read_chunks()
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, dict(self.headers)))
        routes = (
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/cdn/(\w+)/(.+)", self._send_object),
            (r"/plain/(.+)", self._plain),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", self._info),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/upload/(\w+)", self._upload),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
        )
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, path):
                return answer(*match.groups())
        return self._refuse(404, "")

    def _read_chunks(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _find(self, name, revision):
        """The revision's commit and files, or nothing, and the answer is sent."""
        if name in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if name not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound")
        found = self.hub.find(name, revision)
        return found or self._refuse(404, "RevisionNotFound")

    def _resolve(self, name, revision, path):
        found = self._find(name, revision)
        if not found:
            return None
        commit, files = found
        if path not in files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = files[path]
        headers = {"X-Repo-Commit": commit}
        if len(data) < LARGE:
            return self._send(data, path, {**headers, "ETag": f'"{git_hash(data)}"'})
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        headers |= {"Location": f"{self.hub.cdn}/cdn/{digest}/{path}", "ETag": '"x"'}
        return self._answer(302, headers, b"")

    def _send_object(self, digest, path):
        return self._send(self.hub.objects[digest], path, {"ETag": f'"{digest[:32]}"'})

    def _plain(self, path):
        """A file on an ordinary server."""
        files = self.hub.find("plain/plain", "main")[1]
        return self._send(files[path], path, {}) if path in files else self._refuse(404, "")

    def _send(self, data, path, headers):
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            start = int(asked[1])
            if start >= len(data):
                return self._refuse(416, "")
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        with self.hub.lock:
            cuts = self.hub.cuts.get(path, [])
            end = cuts.pop(0) if cuts and self.command == "GET" else None
        if end is None:
            return self._answer(206 if "Content-Range" in headers else 200, headers, rest)
        self._answer(206 if "Content-Range" in headers else 200, headers, rest, end - start)
        self.close_connection = True
        if self.hub.cut == "reset":
            time.sleep(0.02)  # a client that has not read yet loses what it has been sent
            self.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: RST
            self.connection.close()
        return None

    def _answer(self, status, headers, data, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if length is None else data[: max(length, 0)])

    def _json(self, content, status=200):
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _refuse(self, status, code, headers=None):
        self._answer(status, {**(headers or {}), "X-Error-Code": code}, b"{}")

    def _tree(self, name, revision, folder):
        found = self._find(name, revision)
        if not found:
            return None
        files, entries = found[1], {}
        for path, data in sorted(files.items()):
            if not folder or path.startswith(f"{folder}/"):
                rest = path.removeprefix(f"{folder}/") if folder else path
                child = path[: len(path) - len(rest)] + rest.split("/")[0]
                kind = "directory" if "/" in rest else "file"
                entries[child] = {"type": kind, "path": child, "oid": git_hash(data), "size": 1}
        if folder and not entries:
            return self._refuse(404, "EntryNotFound")
        return self._json(list(entries.values()))

    def _info(self, name, revision):
        if found := self._find(name, revision):
            self._json({"id": name, "sha": found[0], "xetEnabled": False})

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name'].rpartition('/')[2]}"
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = []
        return self._json({"url": f"{self.hub.url}/{name}"})

    def _preupload(self, name, revision):
        return self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def _batch(self, name):
        objects = []
        for asked in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/upload/{asked['oid']}"}}
            known = asked["oid"] in self.hub.objects
            objects.append({**asked, **({} if known else {"actions": action})})
        return self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        return self._json({})

    def _commit(self, name, revision):
        if name not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound")
        commits = self.hub.repositories[name]
        files = dict(commits[-1][1]) if commits else {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {p: d for p, d in files.items() if not p.startswith(folder)}
        oid = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits.append((oid, files))
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return self._json({"success": True, "commitOid": oid, "commitUrl": url})
