"""An OData v4 service with contacts and accounts, for tests of the dialect `odata`.

The service itself is odatapy (PyPI): parsing, $filter, paging by nextLink, ETags, change tracking, error bodies. What
this file adds is below `class Dynamics`, from the public documentation of the Dynamics 365 Web API, where odatapy differs
from it:

* records are found by an alternate key, `contacts(new_externalid='A-1')`, which is unique;
* PATCH creates what is not there, unless `If-Match` forbids it, and needs no `If-Match` for what is there;
* an unknown property is an error, the server keeps `createdon` and `modifiedon`, to the second;
* a deltaLink tells all that changed since its first page was asked for;
* `EntityDefinitions` names the sets of the entities, which have no picklists.

With `--plain` nothing of this holds: another OData service, as odatapy makes it. In both cases it asks for a user (Basic,
or a bearer token made of the same text), keeps its records in a file across a kill, and answers 429 as often as the file
`throttle` says.

Usage: odata_server.py DIR PORT [--plain]     (DIR/account: user and password, one line each)
"""

import base64
import datetime
import hmac
import json
import os
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from odatapy.data import Entity, ValueType
from odatapy.edm.csdl import (CsdlAbstractEdmProvider, CsdlEntityContainer, CsdlEntitySet, CsdlEntityType,
                              CsdlProperty, CsdlPropertyRef, CsdlSchema)
from odatapy.edm.primitives import EdmPrimitiveTypeKind, Facets, get_primitive_type
from odatapy.server import OData
from odatapy.server.adapters.common import bad_request, build_request, decode_path
from odatapy.server.inmemory import InMemoryDataStore, InMemoryProcessor
from odatapy.server.processor import CustomETagSupport

ROOT = "/api/data/v9.1"
ADDRESS = {f"address1_{part}": "Edm.String" for part in ("line1", "line2", "postalcode", "city", "country")}
SETS = {
    "contacts": ("contact", "contactid", {
        "new_externalid": "Edm.String", "firstname": "Edm.String", "lastname": "Edm.String",
        "emailaddress1": "Edm.String", "telephone1": "Edm.String", "mobilephone": "Edm.String", **ADDRESS,
        "numberofchildren": "Edm.Int32", "creditlimit": "Edm.Decimal", "birthdate": "Edm.Date",
        "donotemail": "Edm.Boolean", "createdon": "Edm.DateTimeOffset", "modifiedon": "Edm.DateTimeOffset",
    }),
    "accounts": ("account", "accountid", {
        "accountnumber": "Edm.String", "name": "Edm.String", "emailaddress1": "Edm.String",
        "telephone1": "Edm.String", "websiteurl": "Edm.String", **ADDRESS,
        "createdon": "Edm.DateTimeOffset", "modifiedon": "Edm.DateTimeOffset",
    }),
}
# Any decimal number.
FLOATING = Facets(scale="floating")
ALTERNATE = {"contacts": "new_externalid", "accounts": "accountnumber"}


class Provider(CsdlAbstractEdmProvider):
    def get_schemas(self):
        types, sets = [], []
        for name, (singular, key, fields) in SETS.items():
            properties = [CsdlProperty(name=key, type="Edm.Guid", nullable=False)]
            properties += [CsdlProperty(name=field, type=kind, scale="variable" if kind == "Edm.Decimal" else None)
                           for field, kind in fields.items()]
            types.append(CsdlEntityType(name=singular, key=[CsdlPropertyRef(name=key)], properties=properties))
            sets.append(CsdlEntitySet(name=name, type=f"Microsoft.Dynamics.CRM.{singular}"))
        container = CsdlEntityContainer(name="System", entity_sets=sets)
        return [CsdlSchema(namespace="Microsoft.Dynamics.CRM", entity_types=types, entity_container=container)]


class ETags(CustomETagSupport):
    """Every record has an ETag."""

    def has_etag(self, _set):
        return True

    def has_media_etag(self, _set):
        return False


def primitive(kind):
    return get_primitive_type(EdmPrimitiveTypeKind.get_by_name(kind[4:]))


class Kept(InMemoryDataStore):
    """Writes each change to a file, and begins with what is there."""

    def __init__(self, path):
        super().__init__()
        self.file = None
        self.replayed = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    # A kill may have left half a line at the end: that change was never answered.
                    if line.endswith("\n"):
                        self.replay(json.loads(line))
        self.replayed.clear()
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def replay(self, change):
        name, key = change["set"], SETS[change["set"]][1]
        kept = self.replayed.get((name, change["key"]))
        entity = Entity() if kept is None else kept
        entity.id, entity.etag = change["id"], change["etag"]
        for field, text in change["fields"].items():
            kind = "Edm.Guid" if field == key else SETS[name][2][field]
            value = None if text is None else primitive(kind).value_of_string(text, FLOATING)
            entity.set_property(field, value, ValueType.PRIMITIVE, kind)
        if change["kind"] == "deleted":
            self.remove_entity(name, entity)
            self.replayed.pop((name, change["key"]), None)
        elif kept is None:
            self.insert_entity(name, entity)
            self.replayed[name, change["key"]] = entity
        self.record_change(name, entity, change["kind"])

    def record_change(self, entity_set, entity, kind):
        super().record_change(entity_set, entity, kind)
        if self.file is None:
            return
        key, fields = SETS[entity_set][1], SETS[entity_set][2]
        texts = {}
        for prop in entity.properties:
            form = "Edm.Guid" if prop.name == key else fields.get(prop.name)
            if form is not None:
                texts[prop.name] = None if prop.value is None else primitive(form).value_to_string(prop.value, FLOATING)
        line = {"set": entity_set, "kind": kind, "key": str(entity.get_value(key)), "id": entity.id,
                "etag": entity.etag, "fields": texts}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


class Service:
    """odatapy as it is, but for keys that the server makes."""

    def __init__(self, directory, port):
        odata = OData.new_instance()
        self.handler = odata.create_handler(odata.create_service_metadata(Provider()))
        self.handler.register(ETags())
        self.store = Kept(os.path.join(directory, "records"))
        self.processor = InMemoryProcessor(self.store, page_size=5000)
        self.handler.register(self.processor)
        self.base = f"http://127.0.0.1:{port}{ROOT}"

    def process(self, method, path, query, headers, body):
        return self.odata(method, path, query, headers, body)

    def odata(self, method, path, query, headers, body):
        if method == "POST" and path in SETS:
            body = self.with_fields(body, {SETS[path][1]: str(uuid.uuid4())}, keep=True)
        try:
            request = build_request(method=method, odata_path=path, query_string=query, base_uri=self.base,
                                    headers=headers, body=body)
        except ValueError as error:
            return bad_request(str(error), self.handler)
        return self.handler.process(request)

    @staticmethod
    def with_fields(body, fields, keep=False):
        try:
            record = json.loads(body)
        except ValueError:
            return body
        if not isinstance(record, dict):
            return body
        record = {**fields, **record} if keep else {**record, **fields}
        return json.dumps(record).encode()


class Answer:
    def __init__(self, status, code, message):
        self.status_code, self.headers = status, {"Content-Type": "application/json; odata.metadata=minimal"}
        self.body = json.dumps({"error": {"code": code, "message": message}}).encode()

    @classmethod
    def of(cls, items):
        answer = cls(200, "", "")
        answer.body = json.dumps({"value": items}).encode()
        return answer

    def body_bytes(self):
        return self.body


class Dynamics(Service):
    """Our adaptation: what the Dynamics 365 Web API is documented to do differently."""

    BY_KEY = re.compile(r"(\w+)\((\w+)=('(?:[^']|'')*')\)")
    BY_ID = re.compile(r"(\w+)\(([0-9a-fA-F-]{36})\)")

    def process(self, method, path, query, headers, body):
        with self.store.lock:
            return self.adapted(method, path, query, dict(headers), body)

    def adapted(self, method, path, query, headers, body):
        conditions = {name.lower(): value for name, value in headers.items()}
        found, created = None, {}
        if by_key := self.BY_KEY.fullmatch(path):
            name, field, literal = by_key.groups()
            if ALTERNATE.get(name) != field:
                return Answer(400, "0x80060888", f"The key in the request URI is not valid for resource {name}.")
            value = literal[1:-1].replace("''", "'")
            found = self.by(name, field, value)
            created = {field: value}
            if found is not None:
                path = f"{name}({found.get_value(SETS[name][1])})"
        elif by_id := self.BY_ID.fullmatch(path):
            name, value = by_id.groups()
            if name in SETS:
                found = self.by(name, SETS[name][1], uuid.UUID(value))
                created = {SETS[name][1]: value}
        elif path in SETS:
            name = path
        elif path == "EntityDefinitions":
            # $filter=LogicalName eq '…' is all that is asked of it.
            wanted = unquote(query or "")
            return Answer.of([{"LogicalName": singular, "EntitySetName": name, "PrimaryIdAttribute": key}
                              for name, (singular, key, _) in SETS.items() if f"'{singular}'" in wanted])
        elif path.startswith("EntityDefinitions("):
            return Answer.of([])
        else:
            return self.odata(method, path, query, headers, body)
        if name not in SETS:
            return self.odata(method, path, query, headers, body)
        if created and found is None and not (method == "PATCH" and "if-match" not in conditions):
            return Answer(404, "0x80060891", f"A record with the specified key values does not exist in {name} entity")
        if method in ("POST", "PATCH"):
            if wrong := self.wrong_fields(name, body, found):
                return wrong
            now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            stamps = {"modifiedon": now} if found is not None else {"modifiedon": now, "createdon": now}
            body = self.with_fields(body, {**created, **stamps} if found is None else stamps)
        if method == "PATCH" and found is None:
            headers = {k: v for k, v in headers.items() if k.lower() not in ("if-match", "if-none-match")}
            answer = self.odata("POST", name, None, headers, body)
            return answer if "return=representation" in conditions.get("prefer", "") else self.minimal(answer)
        if method == "POST":
            answer = self.odata(method, path, query, headers, body)
            return answer if "return=representation" in conditions.get("prefer", "") else self.minimal(answer)
        if method in ("PATCH", "DELETE") and not {"if-match", "if-none-match"} & set(conditions):
            headers["If-Match"] = "*"
        if method == "GET" and path in SETS and not created:
            return self.collection(path, query, headers, body, conditions)
        return self.odata(method, path, query, headers, body)

    def collection(self, path, query, headers, body, conditions):
        """Pages of one look share the token of its first page, so that its deltaLink tells what changed meanwhile."""
        parts = [part for part in (query or "").split("&") if part]
        since = [part.split("=", 1)[1] for part in parts if part.startswith("x-since=")]
        query = "&".join(part for part in parts if not part.startswith("x-since=")) or None
        token = since[0] if since else self.store.change_token
        if since:
            headers = {**headers, "Prefer": ", ".join(filter(None, ["odata.track-changes", conditions.get("prefer")]))}
        answer = self.odata("GET", path, query, headers, body)
        if answer.status_code != 200 or "$deltatoken" in (query or ""):
            return answer
        page = json.loads(answer.body_bytes())
        tracked = since or "odata.track-changes" in conditions.get("prefer", "")
        if "@odata.nextLink" in page:
            page.pop("@odata.deltaLink", None)
            if tracked:
                page["@odata.nextLink"] += f"&x-since={token}"
        elif tracked:
            page["@odata.deltaLink"] = f"{self.base}/{path}?$deltatoken={token}"
        answer.set_content(json.dumps(page).encode(), answer.get_header("Content-Type"))
        answer.remove_header("Content-Length")
        return answer

    def wrong_fields(self, name, body, found):
        try:
            record = json.loads(body)
        except ValueError:
            return None
        if not isinstance(record, dict):
            return None
        singular, key, fields = SETS[name]
        for field in record:
            if field not in fields and field != key and "@" not in field:
                return Answer(400, "0x0", "An error occurred while validating input parameters: "
                              "Microsoft.OData.ODataException: The property "
                              f"'{field}' does not exist on type 'Microsoft.Dynamics.CRM.{singular}'.\r\n   at "
                              "Microsoft.Crm.Extensibility.OData.CrmODataEntityDeserializer.ReadEntry()")
        taken = record.get(ALTERNATE[name])
        other = None if taken is None else self.by(name, ALTERNATE[name], taken)
        if other is not None and other is not found:
            return Answer(412, "0x80060892", "A record with matching key values already exists.")
        return None

    def by(self, name, field, value):
        return next((e for e in self.store.data.get(name, []) if e.get_value(field) == value), None)

    @staticmethod
    def minimal(answer):
        if answer.status_code == 201:
            answer.status_code = 204
            answer.set_header("OData-EntityId", answer.get_header("Location") or "")
            answer.set_content(b"")
            answer.remove_header("Content-Type")
        return answer


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer leave at once.
    wbufsize = -1
    disable_nagle_algorithm = True
    lock = threading.Lock()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target, _, query = self.path.partition("?")
        path = decode_path(target[len(ROOT):]).lstrip("/") if target.startswith(ROOT) else None
        said = self.headers.get("Authorization", "").encode()
        if not any(hmac.compare_digest(said, taken) for taken in self.server.credentials):
            return self.say(401, {"Content-Type": "text/html", "WWW-Authenticate": 'Basic realm="crm"'},
                            b"<html><h1>401 - Unauthorized: access is denied due to invalid credentials.</h1></html>")
        if path is None:
            return self.say(404, {"Content-Type": "text/html"}, b"<html><h1>404 - not found</h1></html>")
        if self.throttled():
            error = Answer(429, "0x80072322", "Number of requests exceeded the limit of 6000 over time window of 300 s")
            return self.say(429, {**error.headers, "Retry-After": "1"}, error.body)
        reply = self.server.service.process(self.command, path, query or None, dict(self.headers), body)
        return self.say(reply.status_code, dict(reply.headers), reply.body_bytes() or b"")

    def throttled(self):
        path = os.path.join(self.server.directory, "throttle")
        with self.lock:
            try:
                with open(path, encoding="utf-8") as file:
                    left = int(file.read() or 0)
            except FileNotFoundError:
                return False
            if left > 0:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(str(left - 1))
            return left > 0

    def say(self, status, headers, body):
        with self.lock, open(os.path.join(self.server.directory, "access.log"), "a", encoding="utf-8") as log:
            log.write(f"{status} {self.command} {unquote(self.path)}\n")
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    directory, port = sys.argv[1], int(sys.argv[2])
    server = Server(("127.0.0.1", port), Front)
    server.directory = directory
    server.service = (Service if "--plain" in sys.argv else Dynamics)(directory, port)
    with open(os.path.join(directory, "account"), encoding="utf-8") as file:
        user, password = file.read().split("\n", 1)
    text = base64.b64encode(f"{user}:{password}".encode())
    server.credentials = (b"Basic " + text, b"Bearer " + text)
    server.serve_forever()


main()
