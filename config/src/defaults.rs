//! Every default and bound of the configuration, in one place, each with its reason.

use std::{ops::RangeInclusive, time::Duration};

/// `[agent] state_dir`: inside the configuration folder, so that one mapped folder is enough.
pub const STATE_DIR: &str = "state";
/// `[agent] listen`: loopback, because the page is for the operator alone; the image sets `[::]:9464`.
pub const LISTEN: &str = "127.0.0.1:9464";
/// The environment variable that overrides `[agent] listen`, for images and health checks.
pub const LISTEN_ENV: &str = "PASSERELLE_LISTEN";
/// `[agent] max_jobs`: more than a site's private systems usually bear, little memory here.
pub const MAX_JOBS: u32 = 32;
/// The most jobs at once: what the protocol lets an agent hold.
pub const MAX_JOBS_LIMIT: u32 = 1024;
/// `[agent] max_calls`: somebody waits for each, so they are beside the jobs; more than a busy shop's tills.
pub const MAX_CALLS: u32 = 64;
/// The most calls at once: what the protocol lets an agent take.
pub const MAX_CALLS_LIMIT: u32 = 1024;
/// `[agent] shutdown_grace`: what container engines can be told to wait without surprising anybody.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// The longest grace: beyond it a stop is no stop.
pub const SHUTDOWN_GRACE_LIMIT: Duration = Duration::from_secs(3600);
/// `[agent] spool_quota`: a few large exports at once; a drop's payload does not pass through the spool.
pub const SPOOL_QUOTA: u64 = 16 << 30;
/// The least spool: a payload that is too large for the tunnel must fit.
pub const SPOOL_QUOTA_MIN: u64 = 1 << 20;
/// `[agent] journal_quota`: a million remembered attempts.
pub const JOURNAL_QUOTA: u64 = 1 << 30;
/// The least journal: below it an agent with many jobs at once would decline most of the time.
pub const JOURNAL_QUOTA_MIN: u64 = 8 << 20;
/// `[agent] audit_quota`: about a million jobs at three rows each.
pub const AUDIT_QUOTA: u64 = 1 << 30;
/// The least audit: several files, so that the oldest can go.
pub const AUDIT_QUOTA_MIN: u64 = 1 << 20;
/// `[agent] key_rotation`: a stolen copy of the key is of no use after a month; nobody notices the change.
pub const KEY_ROTATION: Duration = Duration::from_secs(30 * 24 * 3600);
/// The shortest: below it the agent would do little else.
pub const KEY_ROTATION_MIN: Duration = Duration::from_secs(1);
/// `[log] level`: state changes and what is worth a look.
pub const LOG_LEVEL: &str = "info";
/// `[log] classic_keep`: as long as the suite keeps the history of its runs.
pub const CLASSIC_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
/// Less than an hour is less than a file.
pub const CLASSIC_KEEP_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(3650 * 24 * 3600);
/// `[log] classic_quota`: months of an agent that is not at debug level.
pub const CLASSIC_QUOTA: u64 = 1 << 30;
/// The least: an hour of a quiet agent.
pub const CLASSIC_QUOTA_MIN: u64 = 1 << 20;
/// `limits.max_concurrent`: file servers and in-house applications bear that many without tuning.
pub const MAX_CONCURRENT: u32 = 4;
/// The same for a CRM: its users come first, and a key is written by one attempt at a time anyway.
pub const CRM_MAX_CONCURRENT: u32 = 2;
/// The most attempts at once on one resource.
pub const MAX_CONCURRENT_LIMIT: u32 = 1000;
/// The most attempts per minute that can be told: above it the limit means nothing.
pub const RATE_LIMIT: u32 = 1_000_000;
/// The name of an agent whose host has no usable name.
pub const AGENT_NAME: &str = "agent";

/// The longest configuration file: a thousand resources fit; a mistaken log file or disk image does not.
pub const MAX_FILE: u64 = 1024 * 1024;
/// The most files in `resources.d`.
pub const MAX_FILES: usize = 1000;
/// The most resources: what the protocol lets an agent announce.
pub const MAX_RESOURCES: usize = 500;
/// The most allow rules of a resource: each decision walks them.
pub const MAX_RULES: usize = 100;
/// The most attempts per day that a rule can tell: above it the limit means nothing.
pub const MAX_PER_DAY_LIMIT: u32 = 1_000_000_000;
/// The longest name of an agent, resource or operation: that of the protocol.
pub const MAX_NAME: usize = 64;
/// The most triggers of a resource: each looks at it in its own rhythm.
pub const MAX_TRIGGERS: usize = 32;
/// `stable = { quiet }`: longer than a slow copy over a network stands still.
pub const QUIET: Duration = Duration::from_secs(10);
/// Below a tenth of a second a file's time tells nothing; beyond a day nobody waits.
pub const QUIET_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
/// `stable = { looks }`: more of them are better said as a quiet time.
pub const MAX_LOOKS: u32 = 1000;
/// `every`: a file server does not feel it, and nobody waits long.
pub const EVERY: Duration = Duration::from_secs(30);
/// The most listeners: what the protocol lets an agent announce.
pub const MAX_LISTENERS: usize = 64;
/// `[listeners.*] max_size`: an event with all its lines fits; files have other ways.
pub const LISTENER_SIZE: u64 = 1 << 20;
/// `[listeners.*] rate_per_minute`: a hundred a second is more than an in-house application has to tell.
pub const LISTENER_RATE: u32 = 6000;
/// `[listeners.*] max_concurrent`: each may hold 256 KiB of memory.
pub const LISTENER_CONCURRENT: u32 = 64;
/// The longest path of a listener.
pub const MAX_LISTENER_PATH: usize = 200;
/// The most secrets of a listener: an old one, a new one, and some of several senders.
pub const MAX_LISTENER_SECRETS: usize = 8;
/// The longest `EventKind`.
pub const MAX_EVENT_KIND: usize = 128;
/// The most records that a page of a change feed has.
pub const CHANGES_PAGE_LIMIT: u32 = 1000;
/// `[[resources.*.changes]] page_size`: what every known CRM gives at once.
pub const CHANGES_PAGE: u32 = 100;
/// More often than each second a folder need not be looked at, and less often than once a day is never.
pub const EVERY_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
