"""A loopback Hugging Face hub for the unmodified `datasets` client: it publishes one dataset, or fails as hubs do."""

import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet

SHA = "0123456789abcdef0123456789abcdef01234567"


def parquet(columns):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def serve(name, splits, fault=None):
    """Yields the server: .url and .asked, the paths that were asked for.

    splits: {split: {column: values}}; fault(path) -> None, or (status, content type, body), or seconds to hang.
    """
    files = {f"data/{split}-00000-of-00001.parquet": parquet(columns) for split, columns in splits.items()}
    info = {
        "id": name,
        "sha": SHA,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
    info["siblings"] = [{"rfilename": path, "size": len(body)} for path, body in files.items()]
    tree = [{"type": "file", "oid": SHA, "size": len(body), "path": path} for path, body in files.items()]
    tree += [{"type": "directory", "oid": SHA, "size": 0, "path": "data"}]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, status, kind, body, **headers):
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            server.asked.append(path)
            if failed := fault and fault(path):
                if isinstance(failed, tuple):
                    return self.reply(*failed)
                time.sleep(failed)
            if path.startswith(f"/datasets/{name}/resolve/"):
                body = files.get(path.split("/resolve/")[1].partition("/")[2])
                if body is not None:
                    return self.reply(
                        200, "application/octet-stream", body, ETag=f'"{hash(path) & 0xFFFFFF:x}"', X_Repo_Commit=SHA
                    )
            elif path.startswith(f"/api/datasets/{name}/tree/"):
                folder = path.split("/tree/")[1].partition("/")[2]
                found = [e for e in tree if e["path"].rpartition("/")[0] == folder or "recursive=True" in self.path]
                return self.reply(200, "application/json", json.dumps(found).encode())
            elif path in (
                f"/api/datasets/{name}",
                f"/api/datasets/{name}/revision/{SHA}",
                f"/api/datasets/{name}/revision/main",
            ):
                return self.reply(200, "application/json", json.dumps(info).encode())
            elif path == f"/api/datasets/{name}/paths-info/{SHA}":
                return self.reply(200, "application/json", b"[]")
            self.reply(404, "application/json", b'{"error": "not found"}', X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
