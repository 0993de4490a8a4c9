"""A stand-in for the Hugging Face hub, of one repository, for the hub's own client."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator

COMMIT = "c" * 40


@contextlib.contextmanager
def serving(repository: str, folder: pathlib.Path) -> Iterator[tuple[str, list]]:
    """Serves a folder as a repository; yields the address and the requests.

    The repository is there once the folder is; what is committed is written to it.
    """
    asked = []
    home = f"https://huggingface.co/{repository}"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body, **headers):
            self.send_response(status)
            headers["Content-Length"] = len(body)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = urllib.parse.urlsplit(self.path).path
            asked.append((self.command, path))
            api, files = f"/api/models/{repository}", f"/{repository}/resolve/"
            if not folder.exists():
                self.answer(404, b"", X_Error_Code="RepoNotFound")
            elif path in (api, f"{api}/revision/main"):
                self.json({"id": repository, "sha": COMMIT, "siblings": siblings()})
            elif path == f"{api}/tree/{COMMIT}":
                self.json(tree())
            elif path.startswith(files):
                name = path.removeprefix(files).split("/", 1)[1]
                content = (folder / name).read_bytes()
                self.answer(200, content, ETag=f'"{oid(name)}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(404, b"", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self):
            path = urllib.parse.urlsplit(self.path).path
            asked.append((self.command, path))
            lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
            lines = [json.loads(line) for line in lines]
            api = f"/api/models/{repository}"
            if path == "/api/repos/create":
                user, name = repository.split("/")
                (asks,) = lines
                assert (asks["organization"], asks["name"]) == (user, name)
                folder.mkdir(exist_ok=True)
                self.json({"url": home})
            elif path == f"{api}/preupload/main":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in lines[0]["files"]
                ]
                self.json({"files": files})
            elif path == f"{api}/commit/main":
                for line in lines:
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        (folder / line["value"]["path"]).write_bytes(content)
                url = f"{home}/commit/{COMMIT}"
                self.json({"commitUrl": url, "commitOid": COMMIT})
            else:
                self.answer(404, b"", X_Error_Code="RepoNotFound")

        def json(self, content):
            body = json.dumps(content).encode()
            self.answer(200, body, Content_Type="application/json")

    def oid(name):
        return hashlib.sha1((folder / name).read_bytes()).hexdigest()

    def siblings():
        return [{"rfilename": path.name} for path in sorted(folder.iterdir())]

    def tree():
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": oid(path.name),
            }
            for path in sorted(folder.iterdir())
        ]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
