"""A hub on this machine: the few addresses that the hub's client asks for, over files held in memory."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = hashlib.sha1(b"commit").hexdigest()


@contextmanager
def run_fake_hub(repositories, token=None):
    """Serves {"owner/name": {path: bytes}}; yields its address and the list of (method, path) asked for.

    With a token, a request without it is answered as if there were no such repository.
    """
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0].strip("/")
            asked.append((self.command, path))
            allowed = token is None or self.headers.get("Authorization") == f"Bearer {token}"
            for name, files in repositories.items() if allowed else ():
                if path == f"api/models/{name}" or path == f"api/models/{name}/revision/main":
                    return self.send(json.dumps(repository_info(name, files)).encode(), body)
                if path == f"api/models/{name}/tree/{COMMIT}":
                    return self.send(json.dumps(repository_tree(files)).encode(), body)
                if path.startswith(f"{name}/resolve/"):
                    file = path.removeprefix(f"{name}/resolve/").split("/", 1)[1]
                    etag = hashlib.sha1(files[file]).hexdigest()
                    return self.send(files[file], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            return self.send(b"{}", body, {"X-Error-Code": "RepoNotFound"}, status=404)

        def send(self, content, body, headers=(), status=200):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for header in dict(headers).items():
                self.send_header(*header)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def repository_info(name, files):
    config = json.loads(files.get("config.json", "null"))
    siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
    return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "config": config}


def repository_tree(files):
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in files.items()
    ]
