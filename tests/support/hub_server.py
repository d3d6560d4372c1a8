"""
A Hub on localhost, with the requests that `huggingface_hub` makes for models. Repositories are held in memory.

They have branches, tags and commits. Small files are inside the commit, weights come by LFS from another host
(`HF_HUB_DISABLE_XET=1`: the client's other protocol needs a service of its own). Refusals are the Hub's: 401 for
unknown tokens, 403 without write access, 404 for private repositories of others. It can also be told to fail.
"""

import base64
import fnmatch
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @property
    def oid(self) -> str:
        """Of the object in git: for weights, of the pointer to them."""
        data = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def description(self, path: str) -> dict:
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)} | (
            {"lfs": lfs} if self.lfs else {}
        )


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # by sha, the files by path
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], title: str) -> str:
        content = json.dumps([self.branches.get(branch), title, {path: file.oid for path, file in files.items()}])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.branches[branch] = files, title, sha
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


class HubServer:
    """
    Attributes:
        writers: by token, the namespaces that its user may write to, the user's own first.
        repositories: by "org/name".
        objects: uploaded weights, by sha256.
        requests: (method, path, status) of every answer.
        uploaded: by sha256, how many bytes of weights arrived, however often.
        failures: by a regular expression for paths, the statuses that the next such requests get instead of an answer.
        cut_uploads_after: the connection of an upload is cut after so many bytes.
    """

    def __init__(self):
        self.writers: dict[str, list[str]] = {}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.uploaded: dict[str, int] = defaultdict(int)
        self.failures: dict[str, list[int]] = {}
        self.cut_uploads_after: int | None = None
        self.lock = threading.RLock()
        # Weights lie on another host, to which the client must not send its token
        self._servers = [
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), type(name, (_Handler,), {"hub": self, "routes": routes}))
            for name, routes in (("Hub", ROUTES), ("Storage", STORAGE_ROUTES))
        ]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for server in self._servers:
                server.shutdown()
                server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, File]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.find(revision)]


REPO = r"(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
# By method and path; functions of the handler. HEAD is GET without a body.
ROUTES = [
    ("GET", r"/api/whoami-v2", "who_am_i"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{REPO}/branch/{REVISION}", "create_branch"),
    ("POST", rf"/api/models/{REPO}/tag/{REVISION}", "create_tag"),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", r"/lfs/verify", "lfs_verify"),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}", "tree"),
    ("GET", rf"/api/models/{REPO}(/revision/{REVISION})?", "info"),
    ("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
STORAGE_ROUTES = [("PUT", r"/(?P<oid>[0-9a-f]{64})", "upload"), ("GET", r"/(?P<oid>[0-9a-f]{64})", "download")]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer
    routes: list[tuple[str, str, str]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path, method = urlsplit(self.path).path, "GET" if self.command == "HEAD" else self.command
        name, parameters = "unknown", {}
        for wanted, pattern, function in self.routes:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                name, parameters = function, {key: unquote(value) for key, value in match.groupdict().items() if value}
                break
        try:
            if name != "upload":  # which is received as it comes, so that it can be cut
                self.body = b"".join(self.chunks())
            self.fail_on_demand(path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and self.routes is STORAGE_ROUTES:
                raise Refusal(400, "Only one auth mechanism allowed")
            if token and token not in self.hub.writers:
                raise Refusal(401, "Invalid credentials in Authorization header")
            self.namespaces = self.hub.writers.get(token, [])
            getattr(self, name)(**parameters)
        except Refusal as refusal:
            self.close_connection = name == "upload"  # the rest of the body is not read
            self.answer({"error": refusal.message}, refusal.status, refusal.headers)

    def fail_on_demand(self, path: str):
        with self.hub.lock:
            for pattern, statuses in self.hub.failures.items():
                if statuses and re.search(pattern, path):
                    raise Refusal(statuses.pop(0), "The Hub is out of order")

    do_HEAD = do_POST = do_PUT = do_GET

    # Reading and answering

    def chunks(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            yield (chunk := self.rfile.read(min(left, 4096)))
            left -= len(chunk)

    def json(self) -> dict:
        return json.loads(self.body)

    def answer(self, content=b"", status: int = 200, headers: dict[str, str] | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"} | (headers or {})
        with self.hub.lock:
            self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def unknown(self):
        raise Refusal(404, f"Sorry, we can't find {self.command} {self.path}")

    # Who may do what

    def readable(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and repo_id.split("/")[0] not in self.namespaces):
            raise Refusal(404 if self.namespaces else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, repo_id: str) -> Repository:
        repository = self.readable(repo_id)
        self.check_namespace(repo_id.split("/")[0])
        return repository

    def check_namespace(self, name: str):
        if not self.namespaces:
            raise Refusal(401, "Invalid username or password.")
        if name not in self.namespaces:
            raise Refusal(403, f"You don't have the rights to write to the namespace {name}")

    def found(self, repository: Repository, revision: str) -> str:
        sha = repository.find(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # The API

    def who_am_i(self):
        if not self.namespaces:
            raise Refusal(401, "Invalid username or password.")
        self.answer({"name": self.namespaces[0], "orgs": [{"name": name} for name in self.namespaces[1:]]})

    def create(self):
        request = self.json()
        namespace = request["organization"] or (self.namespaces or [""])[0]
        repo_id = f"{namespace}/{request['name']}"
        self.check_namespace(namespace)
        url = f"{self.hub.url}/{repo_id}"
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                return self.answer({"error": "You already created this model repo", "url": url}, 409)
            repository = Repository(private=request.get("visibility") == "private")
            attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)
            repository.commit("main", {".gitattributes": attributes}, "initial commit")
            self.hub.repositories[repo_id] = repository
        self.answer({"url": url, "name": repo_id})

    def validate_yaml(self):
        content = self.json()["content"]
        if not content.startswith("---\n"):
            return self.answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        self.answer({"errors": [], "warnings": []})

    def create_branch(self, repo: str, revision: str):
        repository = self.writable(repo)
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        repository.branches[revision] = self.found(repository, self.json().get("startingPoint", "main"))
        self.answer({})

    def create_tag(self, repo: str, revision: str):
        repository = self.writable(repo)
        repository.tags[self.json()["tag"]] = self.found(repository, revision)
        self.answer({})

    def preupload(self, repo: str, revision: str):
        repository = self.writable(repo)
        present = repository.commits[self.found(repository, revision)]
        answers = []
        for one in self.json()["files"]:
            lfs = fnmatch.fnmatch(one["path"], "*.safetensors")
            old = present.get(one["path"])
            oid = old and (old.sha256 if old.lfs else old.oid)
            answers.append(
                {"path": one["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        self.answer({"files": answers})

    def lfs_batch(self, repo: str):
        self.writable(repo)
        request = self.json()
        assert request["operation"] == "upload" and "basic" in request["transfers"]
        answers = []
        for one in request["objects"]:
            if one["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.storage_url}/{one['oid']}", "header": {}}
                one["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}}}
            answers.append(one)
        self.answer({"transfer": "basic", "objects": answers})

    def upload(self, oid: str):
        received = bytearray()
        for chunk in self.chunks():
            received += chunk
            with self.hub.lock:
                self.hub.uploaded[oid] += len(chunk)
            if self.hub.cut_uploads_after is not None and len(received) >= self.hub.cut_uploads_after:
                # A reset instead of a proper end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
        if hashlib.sha256(received).hexdigest() != oid:
            raise Refusal(400, "Content does not have this sha256")
        self.hub.objects[oid] = bytes(received)
        self.answer()

    def lfs_verify(self):
        request = self.json()
        if len(self.hub.objects.get(request["oid"], b"")) != request["size"]:
            raise Refusal(404, "Object does not exist")
        self.answer({})

    def commit(self, repo: str, revision: str):
        repository = self.writable(repo)
        if revision not in repository.branches:
            raise Refusal(400, f"{revision} is not a branch")
        with self.hub.lock:
            files, title = dict(repository.commits[repository.branches[revision]]), ""
            for line in self.body.splitlines():
                entry = json.loads(line)
                key, value = entry["key"], entry["value"]
                if key == "header":
                    title = value["summary"]
                elif key == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
                elif key == "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise Refusal(400, f"LFS pointer to a file that does not exist: {value['path']}")
                    files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    raise Refusal(400, f"Unknown operation {key}")
            sha = repository.commit(revision, files, title)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def info(self, repo: str, revision: str = "main"):
        repository = self.readable(repo)
        sha = self.found(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self.answer({"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": siblings})

    def tree(self, repo: str, revision: str):
        repository = self.readable(repo)
        files = repository.commits[self.found(repository, revision)]
        self.answer([file.description(path) for path, file in sorted(files.items())])

    def resolve(self, repo: str, revision: str, path: str):
        repository = self.readable(repo)
        sha = self.found(repository, revision)
        file = repository.commits[sha].get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self.send_content(file.content, headers | {"ETag": f'"{file.oid}"'})
        linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self.answer(b"", 302, headers | linked | {"Location": f"{self.hub.storage_url}/{file.sha256}"})

    def download(self, oid: str):
        self.send_content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def send_content(self, content: bytes, headers: dict[str, str]):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(content, 200, headers)
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        part = content[start : end + 1]
        self.answer(part, 206, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"})
