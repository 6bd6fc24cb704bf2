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

-- The envelope that the client signed, a compact JWS; NULL: the hub signs at each offer. With it, `idempotency_body` is the
-- digest of the submission also without an idempotency key.
ALTER TABLE jobs ADD COLUMN envelope TEXT;
