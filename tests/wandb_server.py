"""A loopback stand-in for W&B's server, enough for sweeps and runs in tests; the unmodified client works against it.

    with serve() as server: subprocess.run([...], env={**os.environ, **server.env}); server.runs["..."]["history"]

Serves sweep creation and state, agents (register and heartbeat), runs (online, or uploaded by `wandb sync`), and what
wandb.Api() reads back. Searches are taken, but only a grid's runs are handed out. It is written from the client's side:
where the real server's behaviour cannot be seen from there, it does something plain. Listens on 127.0.0.1 only.
"""

import base64
import contextlib
import gzip
import itertools
import json
import re
import secrets
import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

ENTITY = "stub"
CONSTANT = {  # operations whose answer is always the same
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "OrgFeatureFlags": {"organization": {"featureFlags": []}},
    "FetchOrgEntityFromEntity": {"entity": {"organization": None, "user": None}},
    "OrganizationCoreWeaveOrganizationID": {"entity": {"organization": None}},
    "MarkRunFilesUploaded": {"markRunFilesUploaded": {"success": True}},
    "RunParquetHistory": {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}},
}


def points(config):
    """All points of a grid, in order."""
    lists = [p["values"] if "values" in p else [p["value"]] for p in config["parameters"].values()]
    return [dict(zip(config["parameters"], c, strict=True)) for c in itertools.product(*lists)]


class Refused(Exception):
    """What the server answers to a bad request: an HTTP status and a message."""


def b64(text):
    return base64.b64encode(text.encode()).decode()


class Server:
    """What the server knows: sweeps, agents and runs by name, and how many runs it handed out.

    hang(): it answers nothing; die(): it refuses connections, and breaks those that there are; heal() mends both.
    """

    def __init__(self):
        self.lock, self.passing = threading.RLock(), threading.Event()
        self.listener, self.address, self.connections = None, ("127.0.0.1", 0), []
        self.sweeps, self.agents, self.runs, self.handed_out, self.unknown = {}, {}, {}, 0, []
        self.refuses = False  # answers 403 to what runs log

    def heal(self):
        self.passing.set()
        if not self.listener:
            self.listener = Listener(self.address, Handler)
            self.listener.state, self.address = self, self.listener.server_address
            self.url = f"http://127.0.0.1:{self.address[1]}"
            threading.Thread(target=self.listener.serve_forever, daemon=True).start()

    def hang(self):
        self.passing.clear()

    def die(self):
        listener, self.listener = self.listener, None
        listener.shutdown()
        listener.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections = []

    @property
    def env(self):
        """What points an unmodified client here."""
        env = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_ERROR_REPORTING": "false"}
        return env | {"WANDB_MODE": "online"}

    def run(self, name):
        run = dict(id=b64("Run:v1:" + name), name=name, displayName=name, entity=ENTITY, project="uncategorized")
        run |= dict(sweep=None, state="pending", config={}, summary={}, history=[], stop=False)
        return self.runs.setdefault(name, run)

    def project(self, project, entity):
        owner = {"id": b64(f"Entity:{entity}"), "name": entity}
        return {"id": b64(f"Project:v1:{project}:{entity}"), "name": project, "entity": owner}

    # ---- the client's GraphQL operations, by name; v: their variables
    def op_Viewer(self, v):
        viewer = {"id": b64("User:1"), "flags": "{}", "entity": ENTITY, "admin": False, "email": "stub@localhost"}
        viewer |= {"name": "stub", "username": "stub", "apiKeys": {"edges": []}, "deletedAt": None}
        viewer |= {"teams": {"edges": [{"node": {"name": ENTITY}}]}}
        return {"viewer": viewer}

    op_GetDefaultEntity = op_GetViewer = op_Viewer

    def op_UpsertSweep(self, v):
        sweep = next((s for s in self.sweeps.values() if v.get("id") in (s["id"], s["name"])), None)
        config = yaml.safe_load(v["config"]) if v.get("config") is not None else None
        known = {"name", "description", "program", "command", "method", "metric", "parameters", "early_terminate"}
        if unknown := set(config or {}) - known - {"run_cap", "project", "entity"}:  # as the schema of sweeps 0.3.0
            raise Refused(400, f"invalid sweep config: additional properties {unknown}")
        if sweep is None:
            if v.get("id"):
                raise Refused(404, "sweep not found")
            project, entity = v.get("projectName") or "uncategorized", v.get("entityName") or ENTITY
            name = secrets.token_hex(4)
            sweep = dict(id=b64(f"Sweep:v1:{name}:{project}:{entity}"), name=name, project=project, entity=entity)
            sweep |= dict(state="RUNNING", next=0)
            self.sweeps[name] = sweep
        if config is not None:
            size = len(points(config)) if config["method"] == "grid" else None
            sweep |= {"text": v["config"], "config": config, "size": size}
        sweep["state"] = v.get("state") or sweep["state"]
        named = {"name": sweep["name"], "project": self.project(sweep["project"], sweep["entity"])}
        return {"upsertSweep": {"sweep": named, "configValidationWarnings": []}}

    op_UpsertSweepState = op_UpsertSweep

    def op_Sweep(self, v):
        sweep = self.sweeps.get(v.get("sweep") or v.get("name"))
        if sweep is None:
            return {"project": {"sweep": None}}
        node = dict.fromkeys(("description", "bestLoss", "createdAt", "updatedAt", "controllerRunName"))
        node |= {key: sweep[key] for key in ("id", "name", "state")} | {"displayName": sweep["config"].get("name")}
        node |= {"method": sweep["config"]["method"], "config": sweep["text"], "runs": {"edges": []}}
        node |= {"runCount": sum(r["sweep"] == sweep["name"] for r in self.runs.values())}
        node |= {"runCountExpected": sweep["size"]}
        return {"project": {**self.project(sweep["project"], sweep["entity"]), "sweep": node}}

    op_SweepWithRuns = op_GetSweep = op_GetSweepLegacy = op_GetSweepState = op_SweepConfig = op_Sweep

    def op_CreateAgent(self, v):
        agent = {"id": b64("Agent:v1:" + secrets.token_hex(4)), "sweep": v["sweep"], "running": []}
        self.agents[agent["id"]] = agent
        return {"createAgent": {"agent": {"id": agent["id"]}}}

    def op_Heartbeat(self, v):
        agent = self.agents.get(v["id"])
        if agent is None or agent["sweep"] not in self.sweeps:
            raise Refused(404, "agent not found")
        sweep, commands = self.sweeps[agent["sweep"]], []
        running = [name for name, on in json.loads(v.get("runState") or "{}").items() if on]
        for name in set(agent["running"]) - set(running):  # it ended, or never started
            run = self.runs[name]
            run["state"] = {"running": "crashed", "pending": "finished"}.get(run["state"], run["state"])
        agent["running"] = running
        commands += [{"type": "stop", "run_id": name} for name in running if self.told_to_stop(self.runs[name])]
        if not running and sweep["state"] == "RUNNING":
            if sweep["next"] >= sweep["size"]:
                if not any(a["running"] for a in self.agents.values() if a["sweep"] == sweep["name"]):
                    sweep["state"] = "FINISHED"
                commands.append({"type": "exit"})
            else:
                name, point = secrets.token_hex(4), points(sweep["config"])[sweep["next"]]
                args, sweep["next"] = {k: {"value": x} for k, x in point.items()}, sweep["next"] + 1
                run = dict(sweep=sweep["name"], config=dict(args), project=sweep["project"], entity=sweep["entity"])
                self.run(name).update(run)
                agent["running"] = [name]
                command = {"type": "run", "run_id": name, "id": name, "program": sweep["config"].get("program")}
                commands.append(command | {"args": args})
                self.handed_out += 1
        elif not running and sweep["state"] in ("FINISHED", "CANCELED", "STOPPED"):
            commands.append({"type": "exit"})
        return {"agentHeartbeat": {"agent": {"id": agent["id"]}, "commands": json.dumps(commands)}}

    def op_UpsertBucket(self, v):
        known = next((r["name"] for r in self.runs.values() if r["id"] == v.get("id")), None)
        name = v.get("name") or known or secrets.token_hex(4)
        inserted, run = name not in self.runs, self.run(name)
        keys = ("project", "entity", "sweep", "displayName", "groupName", "notes", "tags")
        run |= {k: v[k] for k in keys if v.get(k) is not None}
        if v.get("config"):
            run["config"] = json.loads(v["config"])
        run["summary"] |= json.loads(v.get("summaryMetrics") or "{}")
        run["state"] = "running"
        bucket = {key: run[key] for key in ("id", "name", "displayName")} | {"description": None}
        bucket |= {"config": json.dumps(run["config"]), "sweepName": run["sweep"]}
        bucket |= {"historyLineCount": len(run["history"]), "project": self.project(run["project"], run["entity"])}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def op_RunResumeStatus(self, v):
        run, bucket = self.runs.get(v.get("name")), None
        if run and run["history"]:
            bucket = {"id": run["id"], "name": run["name"], "displayName": run["displayName"], "tags": []}
            bucket |= {"config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"])}
            bucket |= {"logLineCount": 0, "historyLineCount": len(run["history"]), "wandbConfig": "{}"}
            tail = json.dumps([json.dumps(run["history"][-1])])
            bucket |= {"historyTail": tail, "eventsTail": "[]", "eventsLineCount": 0}
        entity = {"id": "e", "name": v.get("entity") or ENTITY}
        return {"model": {"id": "m", "name": v.get("project"), "entity": entity, "bucket": bucket}}

    def told_to_stop(self, run):
        return bool(run and (run["stop"] or self.sweeps.get(run["sweep"], {}).get("state") == "CANCELED"))

    def op_CreateRunFiles(self, v):
        run = self.run(v["run"])
        files = [{"name": f, "uploadUrl": f"{self.url}/upload/{v['run']}/{f}"} for f in v["files"]]
        return {"createRunFiles": {"runID": run["id"], "uploadHeaders": [], "files": files}}

    # ---- what wandb.Api() reads back
    def run_node(self, run):
        node = dict.fromkeys(("jobType", "commit", "description", "historyKeys")) | {"readOnly": False, "projectId": 1}
        node |= {key: run[key] for key in ("id", "name", "displayName", "state")} | {"sweepName": run["sweep"]}
        node |= {"group": run.get("groupName"), "notes": run.get("notes"), "tags": run.get("tags") or []}
        node |= {"config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"])}
        node |= {"createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "systemMetrics": "{}"}
        return node | {"historyLineCount": len(run["history"]), "user": {"name": "stub", "username": "stub"}}

    def op_Runs(self, v):
        asked = [condition.get("sweep") for condition in (json.loads(v.get("filters") or "{}") or {}).get("$and", [])]
        wanted = next(filter(None, asked), None)
        found = [r for r in self.runs.values() if r["project"] == v["project"] and wanted in (None, r["sweep"])]
        edges = [{"node": self.run_node(r), "cursor": "1"} for r in found]
        runs = {"edges": edges, "pageInfo": {"endCursor": "1", "hasNextPage": False}}
        return {"project": {"internalId": 1, "runCount": len(found), "readOnly": False, "runs": runs}}

    def op_Run(self, v):
        run = self.runs.get(v.get("name"))
        return {"project": {"run": self.run_node(run) if run else None}}

    op_RunState = op_Run

    def op_RunHistoryKeys(self, v):
        return {"project": {"run": {"historyKeys": {"lastStep": len(self.runs[v["name"]]["history"]) - 1}}}}

    def op_HistoryPage(self, v):
        rows = self.runs[v["run"]]["history"]
        page = [json.dumps(row) for row in rows if v["minStep"] <= row["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": page}}}

    def graphql(self, body):
        query, operation = body.get("query") or "", body.get("operationName")
        operation = operation or (re.search(r"\b(?:query|mutation)\s+(\w+)", query) or ["", "?"])[1]
        if operation in CONSTANT:
            return CONSTANT[operation]
        function = getattr(self, "op_" + operation, None)
        if function is None:
            self.unknown.append(operation)
            raise Refused(400, f"stub: operation {operation} is not implemented")
        return function(body.get("variables") or {})

    def file_stream(self, name, body):
        if self.refuses:
            raise Refused(403, "forbidden")
        run = self.run(name)
        for file, chunk in (body.get("files") or {}).items():
            offset, content = chunk.get("offset", 0), chunk.get("content", [])
            if file == "wandb-history.jsonl":
                run["history"][offset : offset + len(content)] = [json.loads(line) for line in content]
            elif file == "wandb-summary.json":
                run["summary"] = json.loads(content[-1]) if content else run["summary"]
        if body.get("complete"):
            run["state"] = "finished" if body.get("exitcode") == 0 else "failed"
        return {"exitcode": None, "limits": {}, "stopped": self.told_to_stop(run)}


class Listener(ThreadingHTTPServer):
    def get_request(self):
        self.state.connections.append((found := super().get_request())[0])
        return found

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients hang up freely
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def parse_request(self):
        self.server.state.passing.wait()  # while it hangs
        return super().parse_request()

    def send(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def do_GET(self):  # train.py looks whether the server is there
        self.send({})

    def do_POST(self):
        state, path, data = self.server.state, urlsplit(self.path).path, self.body()
        stream = re.match(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream$", path)
        if path != "/graphql" and not stream:  # an upload, or the client's own telemetry
            return self.send({})
        if not self.headers.get("Authorization", "").startswith(("Basic ", "Bearer ")):
            return self.send({"errors": [{"message": "user is not logged in"}]}, 401)
        with state.lock:
            try:
                if stream:
                    return self.send(state.file_stream(unquote(stream[3]), json.loads(data)))
                return self.send({"data": state.graphql(json.loads(data))})
            except Refused as error:
                return self.send({"data": None, "errors": [{"message": error.args[1]}]}, error.args[0])
            except Exception as error:  # a bug here must not look like a flaky network
                traceback.print_exc()
                return self.send({"data": None, "errors": [{"message": f"stub bug: {error!r}"}]}, 400)

    do_PUT = do_POST


@contextlib.contextmanager
def serve():
    """A running server, as a Server; its url and env tell clients where it is."""
    state = Server()
    state.heal()
    try:
        yield state
    finally:
        state.heal()
        state.die()
