"""Holds the schemas of agent and hub to their specification, to the examples, and to mistakes that they must refuse."""

import json
import pathlib
import sys
import tomllib

from jsonschema import Draft202012Validator

agent, hub = (json.load(open(path)) for path in sys.argv[1:3])
for schema in (agent, hub):
    Draft202012Validator.check_schema(schema)
agent, hub = Draft202012Validator(agent), Draft202012Validator(hub)


def holds(validator, text, where):
    for wrong in validator.iter_errors(tomllib.loads(text)):
        sys.exit(f"{where}: {wrong.json_path}: {wrong.message}")


def refuses(validator, text):
    if not list(validator.iter_errors(tomllib.loads(text))):
        sys.exit(f"this is taken:\n{text}")


HUB = '[hub]\nurl = "https://hub.example.com"\n'
examples = pathlib.Path(sys.argv[3])
text = (examples / "agent.toml").read_text()
holds(agent, text, "agent.toml")
# What is behind a '#' as well, but for the sentences.
plain = "\n".join(line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines())
assert plain != text
holds(agent, plain, "agent.toml with every key")
files = sorted((examples / "resources.d").glob("*.toml"))
assert len(files) >= 4, files
for file in files:
    holds(agent, HUB + file.read_text(), file.name)

FILE = HUB + '[resources.x]\nconnector = "file"\nurl = "file:///srv"\n'
holds(agent, FILE + "max_sessions = 4\n", "a folder")
for mistake in [
    "",
    HUB + "colour = 1\n",
    HUB + '[agent]\nmax_jobs = 5000\n',
    HUB + '[agent]\nspool_quota = "7 apples"\n',
    HUB + '[log]\nformat = "xml"\n',
    HUB + '[resources.x]\nurl = "file:///srv"\n',
    HUB + '[resources.x]\nconnector = "carrier-pigeon"\n',
    FILE + 'usrname = "x"\n',
    FILE + 'dialect = "rest"\n',
    FILE + 'password = "literal"\n',
    FILE + "max_sessions = 65\n",
    FILE + '[[resources.x.allow]]\npaths = ["**"]\n',
    HUB + '[resources.x]\nconnector = "http"\nurl = "https://a"\nauth = { kind = "magic" }\n',
    HUB + '[resources.x]\nconnector = "crm"\nurl = "https://a"\ndialect = "none"\n[resources.x.entities.contact]\ntarget = "c"\n',
    HUB + '[listeners.x]\nlisten = "127.0.0.1:9470"\n',
]:
    refuses(agent, mistake)

holds(hub, "", "a hub without a file")
holds(hub, 'data = "d"\nlisten = "[::]:443"\ntls_cert = "c"\ntls_key = "k"\n[limits]\nlease = "30s"\n[retention]\njobs = "26w"\n', "a hub")
for mistake in ["colour = 1\n", "listen = 8080\n", '[quotas]\njobs = 7\n', '[limits]\nmax_connections = 0\n']:
    refuses(hub, mistake)
