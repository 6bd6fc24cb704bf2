-- Which paths of a resource are granted: few at a time.

CREATE INDEX IF NOT EXISTS jobs_granted ON jobs (tenant, site, resource)
  WHERE granted > 0 AND state IN ('offered', 'running');
