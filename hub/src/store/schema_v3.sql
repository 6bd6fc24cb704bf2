-- Where change feeds are. Databases of version 2 may have the table already: it was added there first.

-- How far a trigger has read its change feed: given with its lease, whichever agent gets that.
CREATE TABLE IF NOT EXISTS trigger_cursors (
  tenant TEXT NOT NULL,
  site TEXT NOT NULL,
  resource TEXT NOT NULL,
  name TEXT NOT NULL,
  cursor TEXT NOT NULL,
  stored_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, site, resource, name)
) STRICT, WITHOUT ROWID;
