-- Applications that use the vendor's API, and what the hub tells its subscribers.

-- Applications: the user name and password of HTTP Basic.
CREATE TABLE IF NOT EXISTS apps (
  id TEXT PRIMARY KEY,                 -- a UUID
  tenant TEXT NOT NULL REFERENCES tenants (name),
  secret BLOB NOT NULL,                -- SHA-256
  created_at INTEGER NOT NULL,
  revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS apps_by_tenant ON apps (tenant);

-- Where notices are delivered to. Password, token and signing secret are needed to send: they are here as they are.
CREATE TABLE IF NOT EXISTS subscriptions (
  id BLOB PRIMARY KEY,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  label TEXT,
  url TEXT NOT NULL,
  kinds TEXT NOT NULL,                 -- JSON array; empty: all
  auth TEXT NOT NULL,                  -- JSON
  secret TEXT NOT NULL,                -- whsec_…
  created_at INTEGER NOT NULL,
  pending INTEGER NOT NULL DEFAULT 0,  -- its deliveries that are not dead
  dead INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0,  -- what there was no room for
  delivered_at INTEGER,
  failed_at INTEGER,
  failure TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS subscriptions_by_tenant ON subscriptions (tenant, id);

-- What happened and is told: each once, however many are told of it.
CREATE TABLE IF NOT EXISTS notices (
  seq INTEGER PRIMARY KEY,             -- the order of what happened
  id BLOB NOT NULL UNIQUE,             -- the webhook-id
  tenant TEXT NOT NULL REFERENCES tenants (name),
  kind TEXT NOT NULL,
  line BLOB NOT NULL,                  -- the run, job, agent or definition: told of in order
  at INTEGER NOT NULL,
  data TEXT NOT NULL                   -- JSON
) STRICT;

-- The outbox: a row per notice and subscription, until it is delivered.
CREATE TABLE IF NOT EXISTS deliveries (
  seq INTEGER PRIMARY KEY,
  subscription BLOB NOT NULL REFERENCES subscriptions (id),
  notice INTEGER NOT NULL REFERENCES notices (seq),
  line BLOB NOT NULL,
  head INTEGER NOT NULL,               -- 1: nothing of its line is before it
  queued_at INTEGER NOT NULL,          -- it is given up some time after this
  next_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  dead_at INTEGER,                     -- given up then; NULL: pending
  status INTEGER,                      -- the HTTP status of its last attempt
  failure TEXT                         -- why its last attempt failed
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (subscription, next_at) WHERE head = 1 AND dead_at IS NULL;
CREATE INDEX IF NOT EXISTS deliveries_in_line ON deliveries (subscription, line, seq) WHERE dead_at IS NULL;
CREATE INDEX IF NOT EXISTS deliveries_dead ON deliveries (subscription, seq) WHERE dead_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS deliveries_of_notice ON deliveries (notice);

-- Agents whose absence was told, until their return is.
CREATE TABLE IF NOT EXISTS absences (
  agent BLOB PRIMARY KEY REFERENCES agents (id),
  since INTEGER NOT NULL,
  told_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Files that the vendor's API was asked to fetch, each for a run.
CREATE TABLE IF NOT EXISTS standard_requests (
  guid BLOB PRIMARY KEY,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  definition BLOB NOT NULL,
  flow TEXT NOT NULL,
  url TEXT NOT NULL,
  requested_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  next_at INTEGER,                     -- NULL: it is settled
  run BLOB,                            -- the run that it started
  failure TEXT                         -- why the last attempt failed
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS standard_requests_due ON standard_requests (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS standard_requests_old ON standard_requests (requested_at);
