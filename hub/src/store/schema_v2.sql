-- Schema version 2: who needs which content, so that what nobody needs any more can be removed.

-- The files named by digest, and whose content they are: a blob's, or (output = 1) a job's output. Ids begin with their
-- time, so the oldest come first.
CREATE TABLE files (
  owner BLOB NOT NULL,
  sha256 BLOB NOT NULL,
  output INTEGER NOT NULL,
  PRIMARY KEY (owner, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_by_digest ON files (sha256);

-- The jobs that name an uploaded blob. Small content that came with a job needs no row: its blob has the job's id.
CREATE TABLE uses (
  blob BLOB NOT NULL,
  job BLOB NOT NULL,
  PRIMARY KEY (blob, job)
) STRICT, WITHOUT ROWID;

INSERT INTO files SELECT id, sha256, 0 FROM blobs WHERE id NOT IN (SELECT blob FROM contents);
INSERT INTO files SELECT id, output_sha256, 1 FROM jobs
  WHERE output_sha256 IS NOT NULL AND seq NOT IN (SELECT job FROM outputs);
INSERT OR IGNORE INTO files SELECT job, sha256, 1 FROM uploads WHERE complete = 1;
INSERT INTO uses SELECT payload, id FROM jobs WHERE payload IS NOT NULL;

-- The keys that agents ever had: tokens are taken of those that have not ended, receipts are verified with all.
CREATE TABLE agent_keys (
  public_key TEXT PRIMARY KEY,
  agent BLOB NOT NULL REFERENCES agents (id),
  added_at INTEGER NOT NULL,
  used_at INTEGER,                     -- its first use; NULL: the key before is still the one in use
  ends_at INTEGER                      -- not taken after; NULL: taken
) STRICT, WITHOUT ROWID;
CREATE INDEX agent_keys_by_agent ON agent_keys (agent, added_at);
INSERT INTO agent_keys SELECT public_key, id, enrolled_at, enrolled_at, NULL FROM agents;

-- The agents' tokens that were used, until they are out of date by themselves.
CREATE TABLE seen_tokens (
  agent BLOB NOT NULL,
  jti TEXT NOT NULL,
  until INTEGER NOT NULL,              -- seconds
  PRIMARY KEY (agent, jti)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_tokens_by_end ON seen_tokens (until);

-- The hub's own signing keys, in their order; the last one signs. Private keys are in files.
CREATE TABLE signing_keys (
  seq INTEGER PRIMARY KEY,
  public_key TEXT NOT NULL UNIQUE,
  statement TEXT,                      -- compact JWS by the key before; NULL: the first
  made_at INTEGER NOT NULL
) STRICT;

-- The agent that was enrolled in the place of this one.
ALTER TABLE agents ADD COLUMN replaced_by BLOB;
CREATE INDEX agents_by_successor ON agents (replaced_by) WHERE replaced_by IS NOT NULL;

-- Agents of whose identity two live processes were seen.
CREATE TABLE clones (
  agent BLOB PRIMARY KEY REFERENCES agents (id),
  first_at INTEGER NOT NULL,
  last_at INTEGER NOT NULL,
  times INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- The envelope that the client signed, a compact JWS; NULL: the hub signs at each offer. With it, `idempotency_body` is the
-- digest of the submission also without an idempotency key.
ALTER TABLE jobs ADD COLUMN envelope TEXT;

-- What the triggers of agents told of. The payload is a blob of its own: small content in `contents`, other in a file.
CREATE TABLE received_events (
  seq INTEGER PRIMARY KEY,             -- the order of their arrival
  tenant TEXT NOT NULL,
  id BLOB NOT NULL,                    -- a hash of what happened; a name of it in this tenant alone
  site TEXT NOT NULL,
  resource TEXT NOT NULL,
  trigger_name TEXT NOT NULL,
  kind TEXT NOT NULL,
  agent BLOB NOT NULL REFERENCES agents (id),
  lease INTEGER NOT NULL,
  occurred_at INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  payload BLOB,                        -- the blob
  payload_size INTEGER,
  payload_sha256 BLOB,
  payload_media_type TEXT,
  data TEXT NOT NULL,                  -- JSON
  FOREIGN KEY (tenant, site) REFERENCES sites (tenant, name)
) STRICT;
CREATE UNIQUE INDEX received_by_id ON received_events (tenant, id);
CREATE INDEX received_by_tenant ON received_events (tenant, received_at);
CREATE INDEX received_by_site ON received_events (tenant, site, received_at);
CREATE INDEX received_by_resource ON received_events (tenant, resource, received_at);
CREATE INDEX received_payloads ON received_events (payload) WHERE payload IS NOT NULL;

-- The ids of those that are gone: an agent that was away for long does not tell of them a second time.
CREATE TABLE past_events (
  tenant TEXT NOT NULL,
  id BLOB NOT NULL,
  received_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX past_events_by_time ON past_events (received_at);

-- The event that a job was started from.
ALTER TABLE jobs ADD COLUMN event BLOB;
CREATE INDEX jobs_by_event ON jobs (event) WHERE event IS NOT NULL;

-- The payload of an event that an agent is about to tell of.
ALTER TABLE uploads ADD COLUMN agent BLOB;
ALTER TABLE uploads ADD COLUMN event BLOB;
CREATE UNIQUE INDEX uploads_of_event ON uploads (agent, event) WHERE event IS NOT NULL;

-- The triggers that agents announced: events are taken of those alone.
CREATE TABLE agent_triggers (
  agent BLOB NOT NULL REFERENCES agents (id),
  resource TEXT NOT NULL,
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  announced_at INTEGER NOT NULL,
  current INTEGER NOT NULL,            -- 1: by its last hello
  PRIMARY KEY (agent, resource, name)
) STRICT, WITHOUT ROWID;

-- Which agent of the site may run a trigger.
CREATE TABLE trigger_leases (
  tenant TEXT NOT NULL,
  site TEXT NOT NULL,
  resource TEXT NOT NULL,
  name TEXT NOT NULL,
  agent BLOB NOT NULL REFERENCES agents (id),
  lease INTEGER NOT NULL,              -- grows whenever it goes to another agent
  until INTEGER,                       -- not told to be longer; NULL: without end
  PRIMARY KEY (tenant, site, resource, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX trigger_leases_by_agent ON trigger_leases (agent);
