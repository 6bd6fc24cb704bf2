-- What starts mediations: business events, and what the triggers of definitions wait for.

-- Who may send business events with signatures (Standard Webhooks). The secret verifies: it is here as it is.
CREATE TABLE event_senders (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  secret BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX event_senders_by_tenant ON event_senders (tenant);

-- Business events that applications sent in.
CREATE TABLE business_events (
  seq INTEGER PRIMARY KEY,             -- the order of their arrival
  id BLOB NOT NULL UNIQUE,
  tenant TEXT NOT NULL REFERENCES tenants (name),
  key TEXT NOT NULL,                   -- what tells it from others: the sender's id for it, or a digest
  digest BLOB NOT NULL,                -- SHA-256 of the envelope as it came
  event_kind TEXT NOT NULL,
  event_category TEXT NOT NULL,
  received_at INTEGER NOT NULL,
  envelope TEXT NOT NULL               -- JSON
) STRICT;
CREATE UNIQUE INDEX business_events_by_key ON business_events (tenant, key);
CREATE INDEX business_events_by_tenant ON business_events (tenant, received_at);

-- Which clauses of enabled definitions wait for what: `event/KIND`, `resource/SITE/RESOURCE`.
CREATE TABLE trigger_topics (
  tenant TEXT NOT NULL,
  topic TEXT NOT NULL,
  definition BLOB NOT NULL,
  clause INTEGER NOT NULL,
  PRIMARY KEY (tenant, topic, definition, clause)
) STRICT, WITHOUT ROWID;
CREATE INDEX trigger_topics_by_definition ON trigger_topics (tenant, definition);

-- When clauses of enabled definitions are due: schedules and polls. The row is the truth: a restart goes on from it.
CREATE TABLE trigger_times (
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  clause INTEGER NOT NULL,
  what TEXT NOT NULL,                  -- the clause as JSON: it starts anew when that changes
  poll INTEGER NOT NULL,               -- 1: looked at by a task of its own
  last_at INTEGER NOT NULL,            -- everything until then is done with
  due_at INTEGER,                      -- NULL: never again
  state TEXT,                          -- JSON, of a poll: what it saw last
  PRIMARY KEY (tenant, definition, clause)
) STRICT, WITHOUT ROWID;
CREATE INDEX trigger_times_due ON trigger_times (due_at) WHERE due_at IS NOT NULL AND poll = 0;
CREATE INDEX trigger_times_last ON trigger_times (last_at);
CREATE INDEX trigger_polls_due ON trigger_times (due_at) WHERE due_at IS NOT NULL AND poll = 1;

-- What came for definitions that wait for several things together.
CREATE TABLE trigger_arrivals (
  seq INTEGER PRIMARY KEY,             -- the order of their arrival
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  join_key TEXT NOT NULL,
  clause INTEGER NOT NULL,
  occurrence_key TEXT NOT NULL,
  at INTEGER NOT NULL,
  until INTEGER NOT NULL,              -- waits no longer
  data TEXT NOT NULL,                  -- JSON
  label TEXT,                          -- of the content that came with it
  blob BLOB,                           -- that content: kept as long as it waits
  media_type TEXT
) STRICT;
CREATE UNIQUE INDEX trigger_arrivals_by_occurrence ON trigger_arrivals (tenant, definition, clause, occurrence_key);
CREATE INDEX trigger_arrivals_by_key ON trigger_arrivals (tenant, definition, join_key, clause);
CREATE INDEX trigger_arrivals_until ON trigger_arrivals (until);
CREATE INDEX trigger_arrivals_blobs ON trigger_arrivals (blob) WHERE blob IS NOT NULL;

-- What kept a trigger from starting a run last.
CREATE TABLE trigger_problems (
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  at INTEGER NOT NULL,
  message TEXT NOT NULL,
  times INTEGER NOT NULL,
  PRIMARY KEY (tenant, definition)
) STRICT, WITHOUT ROWID;
