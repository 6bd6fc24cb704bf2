-- Schema version 1. Times are milliseconds since the Unix epoch, ids the 16 bytes of a UUID, digests 32 bytes.
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tenants (
  name TEXT PRIMARY KEY,
  tier TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sites (
  tenant TEXT NOT NULL REFERENCES tenants (name),
  name TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  scopes TEXT NOT NULL,                -- JSON array
  secret BLOB NOT NULL,                -- SHA-256
  created_at INTEGER NOT NULL,
  revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE enrolment_tokens (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  site TEXT NOT NULL,
  application TEXT NOT NULL,
  secret BLOB NOT NULL,                -- SHA-256
  uses_left INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  revoked_at INTEGER,
  FOREIGN KEY (tenant, site) REFERENCES sites (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
  id BLOB PRIMARY KEY,
  tenant TEXT NOT NULL,
  site TEXT NOT NULL,
  application TEXT NOT NULL,
  name TEXT NOT NULL,
  public_key TEXT NOT NULL UNIQUE,
  token TEXT NOT NULL,                 -- the enrolment token it used
  version TEXT NOT NULL,
  epoch INTEGER NOT NULL DEFAULT 0,    -- counts its connections
  enrolled_at INTEGER NOT NULL,
  revoked_at INTEGER,
  connected_at INTEGER,
  last_seen_at INTEGER,
  FOREIGN KEY (tenant, site) REFERENCES sites (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_by_site ON agents (tenant, site);

-- Blobs are names of content. Small content that came with a job is in `contents`, all other in a file named by digest.
CREATE TABLE blobs (
  id BLOB PRIMARY KEY,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  size INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  media_type TEXT,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE contents (
  blob BLOB PRIMARY KEY REFERENCES blobs (id),
  data BLOB NOT NULL
) STRICT;

CREATE TABLE uploads (
  id BLOB PRIMARY KEY,                 -- becomes the blob's id
  tenant TEXT NOT NULL REFERENCES tenants (name),
  length INTEGER NOT NULL,
  sha256 BLOB,                         -- as announced
  media_type TEXT,
  created_at INTEGER NOT NULL,
  job BLOB,                            -- an attempt's output: its job
  attempt INTEGER,
  complete INTEGER NOT NULL DEFAULT 0  -- an output whose content is in its file
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX uploads_of_attempt ON uploads (job, attempt) WHERE job IS NOT NULL;

CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY,             -- the order of submission
  id BLOB NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  site TEXT NOT NULL,
  resource TEXT NOT NULL,
  operation TEXT NOT NULL,
  state TEXT NOT NULL,
  priority INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  deadline INTEGER NOT NULL,
  finished_at INTEGER,
  next_attempt_at INTEGER,
  attempt INTEGER NOT NULL DEFAULT 0,  -- the highest number given
  counted INTEGER NOT NULL DEFAULT 0,  -- attempts that were not withdrawn
  allowed INTEGER NOT NULL,            -- what `counted` may reach: a retry raises it
  refused INTEGER NOT NULL DEFAULT 0,  -- offers in a row that were refused as expired or replayed
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  error_code TEXT,
  error_message TEXT,
  error_effect TEXT,
  deadline_s INTEGER NOT NULL,
  timeout_s INTEGER NOT NULL,
  max_attempts INTEGER NOT NULL,
  payload BLOB,                        -- the blob; gone once a final job needs it no more
  payload_size INTEGER,
  idempotency_key TEXT,
  idempotency_body BLOB,               -- SHA-256 of the submitted body
  order_key TEXT,
  on_failure TEXT,                     -- hold | continue
  blocks INTEGER NOT NULL DEFAULT 0,   -- 1: later jobs of its line wait for it (always 0 without an order key)
  ready INTEGER NOT NULL DEFAULT 1,    -- 0: waits for an earlier job of its line
  granted INTEGER NOT NULL DEFAULT 0,  -- the attempt whose final effect was granted and is not known to have failed
  traceparent TEXT,
  labels TEXT,                         -- JSON object; NULL: none
  output_size INTEGER,
  output_sha256 BLOB,
  output_media_type TEXT,
  receipt TEXT,
  note TEXT,                           -- what an operator wrote when resolving it
  result TEXT,                         -- JSON
  params TEXT NOT NULL,                -- JSON
  FOREIGN KEY (tenant, site) REFERENCES sites (tenant, name)
) STRICT;
-- Lists: newest first under each filter; the row id that ends every index breaks ties. Each index costs time per job, so
-- those for states leave out what nearly all jobs become.
CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at);
CREATE INDEX jobs_by_site ON jobs (tenant, site, created_at);
CREATE INDEX jobs_by_resource ON jobs (tenant, resource, created_at);
CREATE INDEX jobs_by_state ON jobs (tenant, state, created_at)
  WHERE state IN ('failed', 'denied', 'cancelled', 'expired', 'unknown');
CREATE INDEX jobs_open ON jobs (tenant, created_at) WHERE finished_at IS NULL;
CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- The queue and its timers hold unfinished jobs alone.
CREATE INDEX jobs_queue ON jobs (tenant, site, resource, priority DESC) WHERE state = 'queued' AND ready = 1;
CREATE INDEX jobs_waiting ON jobs (next_attempt_at) WHERE state = 'waiting';
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE state IN ('queued', 'waiting') AND granted = 0;
CREATE INDEX jobs_line ON jobs (tenant, site, resource, order_key, ready) WHERE blocks = 1;

CREATE TABLE outputs (
  job INTEGER PRIMARY KEY REFERENCES jobs (seq),
  data BLOB NOT NULL                   -- small output; larger ones are files named by digest
) STRICT;

CREATE TABLE attempts (
  job INTEGER NOT NULL REFERENCES jobs (seq),
  number INTEGER NOT NULL,
  agent BLOB NOT NULL REFERENCES agents (id),
  epoch INTEGER NOT NULL,              -- the connection it was offered over
  commit_mode TEXT NOT NULL,           -- free | ask
  repeat TEXT NOT NULL,                -- as the agent announced it
  withdrawn INTEGER NOT NULL DEFAULT 0,
  reported INTEGER NOT NULL DEFAULT 0, -- 0 with a finished_at: the hub gave it up
  offered_at INTEGER NOT NULL,
  accepted_at INTEGER,
  started_at INTEGER,
  finished_at INTEGER,
  verdict TEXT,
  effect TEXT,
  code TEXT,
  message TEXT,
  bytes_done INTEGER,
  bytes_total INTEGER,
  intent TEXT,                         -- JSON; set: the final effect was granted
  PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_open ON attempts (agent) WHERE finished_at IS NULL;

-- The newest changes, for clients that come back with the id of the last one they saw.
CREATE TABLE events (
  seq INTEGER PRIMARY KEY,
  tenant TEXT NOT NULL,
  kind TEXT NOT NULL,                  -- job | agent | received
  id BLOB NOT NULL
) STRICT;
