-- Mediations: definitions by version, runs with their flows, messages and jobs, and the sequence of what happened.

-- A definition is the newest of its versions; one that was deleted stays as long as runs name it.
CREATE TABLE mediation_definitions (
  tenant TEXT NOT NULL REFERENCES tenants (name),
  guid BLOB NOT NULL,
  version INTEGER NOT NULL,
  name TEXT NOT NULL,
  label TEXT NOT NULL,
  enabled INTEGER NOT NULL,
  overlap TEXT NOT NULL,               -- queue | skip | parallel
  ignore_old_errors INTEGER NOT NULL,
  retention_days INTEGER NOT NULL,
  trigger_kind TEXT NOT NULL,
  standard_flow TEXT,
  system BLOB,
  created_at INTEGER NOT NULL,
  changed_at INTEGER NOT NULL,
  enabled_at INTEGER,                  -- since when it is enabled
  deleted_at INTEGER,
  succeeded_at INTEGER,                -- the end of the last run that succeeded
  late_since INTEGER,                  -- when a run was due that did not succeed in time
  PRIMARY KEY (tenant, guid)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX mediation_definitions_by_name ON mediation_definitions (tenant, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX mediation_definitions_by_flow ON mediation_definitions (tenant, standard_flow)
  WHERE deleted_at IS NULL AND standard_flow IS NOT NULL;

CREATE TABLE mediation_versions (
  tenant TEXT NOT NULL,
  guid BLOB NOT NULL,
  version INTEGER NOT NULL,
  stored_at INTEGER NOT NULL,
  body TEXT NOT NULL,                  -- JSON
  PRIMARY KEY (tenant, guid, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE mediation_runs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which they began
  guid BLOB NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  version INTEGER NOT NULL,
  occurrence TEXT NOT NULL,
  kind TEXT NOT NULL,                  -- of the trigger, or api
  occurred_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  finished_at INTEGER,
  delete_after INTEGER,                -- with finished_at: when it goes
  state TEXT NOT NULL,
  detail TEXT,
  position INTEGER NOT NULL DEFAULT 0, -- units that are finished
  last_step TEXT,                      -- the name of the last of them
  restarts INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0,    -- how often a hub began with the unit that comes now
  data TEXT NOT NULL,                  -- JSON
  watermarks TEXT                      -- JSON: what it sets when it succeeds
) STRICT;
CREATE UNIQUE INDEX mediation_runs_by_occurrence ON mediation_runs (tenant, definition, occurrence);
CREATE INDEX mediation_runs_by_tenant ON mediation_runs (tenant, created_at);
CREATE INDEX mediation_runs_by_definition ON mediation_runs (tenant, definition, created_at);
CREATE INDEX mediation_runs_by_state ON mediation_runs (tenant, state, created_at) WHERE state <> 'succeeded';
CREATE INDEX mediation_runs_open ON mediation_runs (tenant, definition) WHERE finished_at IS NULL;
CREATE INDEX mediation_runs_old ON mediation_runs (delete_after) WHERE delete_after IS NOT NULL;

CREATE TABLE mediation_results (
  run INTEGER NOT NULL REFERENCES mediation_runs (seq),
  unit TEXT NOT NULL,
  result TEXT NOT NULL,                -- JSON
  PRIMARY KEY (run, unit)
) STRICT, WITHOUT ROWID;

CREATE TABLE mediation_flows (
  seq INTEGER PRIMARY KEY,
  guid BLOB NOT NULL UNIQUE,
  run INTEGER NOT NULL REFERENCES mediation_runs (seq),
  label TEXT NOT NULL,
  source TEXT NOT NULL,                -- trigger, or the unit that made it
  direction TEXT NOT NULL,             -- in | out
  processed INTEGER NOT NULL DEFAULT 0,
  blob BLOB NOT NULL,
  size INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  media_type TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  replaced_at INTEGER
) STRICT;
CREATE INDEX mediation_flows_by_run ON mediation_flows (run);
CREATE INDEX mediation_flows_by_blob ON mediation_flows (blob);

CREATE TABLE mediation_messages (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  run INTEGER NOT NULL REFERENCES mediation_runs (seq),
  at INTEGER NOT NULL,
  kind TEXT NOT NULL,                  -- information | error
  text TEXT NOT NULL
) STRICT;
CREATE INDEX mediation_messages_by_run ON mediation_messages (run);

-- The jobs of units, each under a key, written in the transaction that submits the job.
CREATE TABLE mediation_jobs (
  run INTEGER NOT NULL REFERENCES mediation_runs (seq),
  unit TEXT NOT NULL,
  key TEXT NOT NULL,
  job BLOB NOT NULL,
  passed INTEGER NOT NULL DEFAULT 0,   -- 1: an operator decided that it does not matter
  PRIMARY KEY (run, unit, key)
) STRICT, WITHOUT ROWID;

-- What units note beside jobs, so that they do nothing twice.
CREATE TABLE mediation_notes (
  run INTEGER NOT NULL REFERENCES mediation_runs (seq),
  unit TEXT NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,                 -- JSON
  PRIMARY KEY (run, unit, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE mediation_watermarks (
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,                 -- JSON
  run BLOB NOT NULL,                   -- the run that set it
  changed_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, definition, name)
) STRICT, WITHOUT ROWID;

-- What happened to runs and definitions, in the order in which it was committed.
CREATE TABLE mediation_changes (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  definition BLOB NOT NULL,
  run BLOB,                            -- NULL: it is about the definition (late)
  kind TEXT NOT NULL,                  -- created | restarted | succeeded | failed | ignored | superseded | skipped | late
  state TEXT,                          -- of the run, after it
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX mediation_changes_by_tenant ON mediation_changes (tenant, seq);
