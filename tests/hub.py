"""A Hub on localhost: the part of the Hugging Face Hub's HTTP protocol that publishing, loading and streaming use.

Repositories live in memory, as a list of commits; a commit is a mapping of paths to bytes and appears whole or not at
all. Large files go through Git LFS's "basic" transfer, as on the Hub for clients without Xet. `drop_uploads_after`
closes the connection in the middle of a large upload.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKENS = {"hf_writer": "writer", "hf_stranger": "stranger"}
LFS_SIZE = 1_000_000


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)  # (oid, files, message)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> tuple[str, dict[str, bytes], str] | None:
        oid = self.tags.get(revision, revision)
        return next((c for c in reversed(self.commits) if revision == "main" or c[0] == oid), None)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        content = [(path, hashlib.sha1(data).hexdigest()) for path, data in sorted(files.items())]
        oid = hashlib.sha1(json.dumps([content, message, len(self.commits)]).encode()).hexdigest()
        self.commits.append((oid, files, message))
        return oid


class Hub(ThreadingHTTPServer):
    """Runs in a thread: `with Hub() as hub: ... hub.address`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.drop_uploads_after: int | None = None
        self.dropped = 0

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        if self.server.drop_uploads_after is not None:
            self.rfile.read(self.server.drop_uploads_after)
            self.server.dropped += 1
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.large[oid] = data
        self.reply({})

    def route(self, method: str) -> None:
        parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            self.api(method, parts[1:])
        elif "resolve" in parts:
            kind, repo_parts = (parts[0][:-1], parts[1:]) if parts[0] in ("spaces", "datasets") else ("model", parts)
            self.resolve(kind, "/".join(repo_parts[:2]), repo_parts[3], "/".join(repo_parts[4:]))
        elif parts[-2:] == ["objects", "batch"]:
            self.lfs_batch()
        else:
            self.refuse(404, "EntryNotFound", f"no route for {self.path}")

    def api(self, method: str, parts: list[str]) -> None:
        if parts == ["whoami-v2"]:
            if self.user is None:
                return self.refuse(401, "Unauthorized", "Invalid credentials")
            return self.reply({"type": "user", "name": self.user, "orgs": []})
        if parts == ["repos", "create"]:
            return self.create_repo()
        if parts == ["validate-yaml"]:
            self.body()
            return self.reply({"errors": [], "warnings": []})
        kind, name, what = parts[0].removesuffix("s"), "/".join(parts[1:3]), parts[3:] or ["revision", "main"]
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self.user != name.split("/")[0]):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if method == "POST" and what[0] != "paths-info" and self.user != name.split("/")[0]:
            return self.refuse(403, "Forbidden", "You don't have the rights to write to this repository")
        if what[0] == "refs":
            heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}]
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in repo.tags.items()]
            return self.reply({"branches": heads, "converts": [], "tags": tags})
        found = repo.find(what[1])
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"no revision {what[1]}")
        oid, files, _ = found
        if what[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.reply({"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})
        if what[0] == "paths-info":
            wanted = parse_qs(self.body().decode())["paths"]
            return self.reply([self.tree_entry(path, files[path]) for path in wanted if path in files])
        if what[0] == "tree":
            folder = "".join(f"{part}/" for part in what[2:])
            inside = {path: data for path, data in files.items() if path.startswith(folder)}
            entries = [self.tree_entry(path, data) for path, data in inside.items()]
            if "recursive=true" not in urlparse(self.path).query.lower():
                entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(folder)]
                for child in {path.removeprefix(folder).split("/")[0] for path in inside if "/" in path[len(folder) :]}:
                    entries.append({"type": "directory", "path": folder + child, "size": 0, "oid": "0" * 40})
            return self.reply(entries) if inside else self.refuse(404, "EntryNotFound", "no such folder")
        if what[0] == "preupload":
            modes = {
                file["path"]: "lfs" if file["size"] >= LFS_SIZE else "regular" for file in self.json_body()["files"]
            }
            answers = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self.reply({"files": answers})
        if what[0] == "commit":
            return self.commit(name, repo, files)
        if what[0] == "tag":
            wanted = self.json_body()["tag"]
            if wanted in repo.tags:
                return self.refuse(409, "Conflict", "Tag exists already")
            repo.tags[wanted] = oid
            return self.reply({})
        return self.refuse(404, "EntryNotFound", f"no route for {self.path}")

    def create_repo(self) -> None:
        wanted = self.json_body()
        owner = wanted.get("organization") or self.user
        if self.user is None or owner != self.user:
            return self.refuse(403, "Forbidden", "You don't have the rights to create a repository there")
        key = (wanted.get("type") or "model", f"{owner}/{wanted['name']}")
        url = f"{self.server.address}/{'spaces/' if key[0] == 'space' else ''}{key[1]}"
        if key in self.server.repos:
            return self.reply({"error": "You already created this repository", "url": url}, status=409)
        repo = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        self.server.repos[key] = repo
        self.reply({"url": url})

    def commit(self, name: str, repo: Repo, files: dict[str, bytes]) -> None:
        new, message = dict(files), ""
        for line in self.body().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                new[value["path"]] = self.server.large[value["oid"]]
            else:
                del new[value["path"]]
        oid = repo.commit(new, message)
        self.reply({"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def lfs_batch(self) -> None:
        objects: list[dict[str, Any]] = []
        for asked in self.json_body()["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.large:
                entry["actions"] = {"upload": {"href": f"{self.server.address}/large/{asked['oid']}"}}
            objects.append(entry)
        self.reply({"transfer": "basic", "objects": objects})

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.server.repos.get((kind, name))
        if repo is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        found = repo.find(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"no revision {revision}")
        oid, files, _ = found
        if path not in files:
            return self.refuse(404, "EntryNotFound", f"no file {path}", {"X-Repo-Commit": oid})
        etag = hashlib.sha256(files[path]).hexdigest()
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):  # a stream reads piece by piece
            first, last = wanted.removeprefix("bytes=").split("-")
            data = files[path][int(first) : int(last or len(files[path])) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{len(files[path])}"
            return self.send(206, data, headers)
        self.send(200, files[path], headers)

    @staticmethod
    def tree_entry(path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) >= LFS_SIZE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    @property
    def user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def json_body(self) -> Any:
        return json.loads(self.body())

    def reply(self, answer: Any, status: int = 200) -> None:
        self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        answer = json.dumps({"error": message}).encode()
        self.send(status, answer, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
