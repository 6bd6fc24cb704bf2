//! A CRM in memory, and what jobs see of it.

use crate::{
    Call, Connector as _, Failure, Gate, Input, Intent, Outcome, Output, Progress, Visible,
    apart::{Client, Lane},
    crm::{
        Crm,
        cursor::CursorKey,
        dialect::{Abilities, Boxed, Changed, Dialect, Feed, Listed, Page, Span, Written},
        error::{Clash, CrmError, Problem},
        exchange::{Exchange, Talk, credentials::Credentials},
        vocabulary::{Entity, Field, FieldType, Given, Record},
    },
};
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicI64},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A stored record.
#[derive(Debug, Clone)]
pub struct Stored {
    pub fields: Map<String, Value>,
    pub version: u64,
    /// Microseconds.
    pub modified: i64,
    /// Microseconds; 0 if nobody knows.
    pub made: i64,
}

/// What goes wrong next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The next write happens, and its reply is lost.
    LoseReply,
    /// The next write does not happen, and nobody knows.
    LoseRequest,
    /// Just before the next create somebody else creates a record of the same key.
    CreateFirst,
    /// Just before the next update somebody else changes the record.
    ChangeFirst,
}

/// The CRM.
#[derive(Debug)]
pub struct Memory {
    pub records: Mutex<BTreeMap<u64, Stored>>,
    pub next: Mutex<u64>,
    pub mishap: Mutex<Option<Mishap>>,
    pub abilities: Abilities,
    /// Dropped without a word.
    pub drops: Option<&'static str>,
    /// The clock of the next write, in microseconds; each write takes one step.
    pub clock: Mutex<(i64, i64)>,
    /// Gives all records, whatever is asked for.
    pub ignores_filter: bool,
    pub writes: Mutex<usize>,
    /// Cuts off the spaces around texts.
    pub trims: bool,
    /// Gives records of one second in another order for each size of a page.
    pub shuffles: bool,
    /// Tells with each page of changes where it goes on.
    pub links: bool,
    /// Searches without regard to case and spaces around texts.
    pub folds: bool,
    /// Gives at most one record a page, and an empty page before each.
    pub sparse: bool,
    /// Answers a creation with this record instead, and writes what was sent into its fields but those of these names.
    pub merges: Option<(u64, &'static [&'static str])>,
    /// Names this record in place of the one that was created.
    pub misnames: Option<u64>,
    /// Tells when records were made.
    pub tells_making: bool,
    /// How many changed records were left out by offsets.
    pub skipped: Mutex<usize>,
}

pub fn abilities(versions: bool, unique_keys: bool, keyset: bool) -> Abilities {
    Abilities {
        native_upsert: false,
        versions,
        unique_keys,
        feed: Feed::Time { granularity: Duration::from_secs(1), keyset, ties_ordered: true },
        max_page: 5,
    }
}

impl Memory {
    pub fn new(abilities: Abilities) -> Self {
        Self {
            records: Mutex::default(),
            next: Mutex::new(1),
            mishap: Mutex::new(None),
            abilities,
            drops: None,
            clock: Mutex::new((1_700_000_000_000_000, 300_000)),
            ignores_filter: false,
            writes: Mutex::new(0),
            trims: false,
            shuffles: false,
            links: false,
            folds: false,
            sparse: false,
            merges: None,
            misnames: None,
            tells_making: true,
            skipped: Mutex::new(0),
        }
    }

    /// From now on its clock is right: what was written before is old.
    pub fn awake(&self) {
        self.clock.lock().unwrap().0 = Timestamp::now().as_microsecond();
    }

    fn take(&self, mishaps: &[Mishap]) -> Option<Mishap> {
        let mut mishap = self.mishap.lock().unwrap();
        let met = mishap.filter(|mishap| mishaps.contains(mishap));
        if met.is_some() {
            *mishap = None;
        }
        met
    }

    fn now(&self) -> i64 {
        let mut clock = self.clock.lock().unwrap();
        clock.0 += clock.1;
        clock.0
    }

    pub fn insert(&self, fields: &[(&str, &str)]) -> u64 {
        let mut next = self.next.lock().unwrap();
        let id = *next;
        *next += 1;
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        let now = self.now();
        self.records.lock().unwrap().insert(id, Stored { fields, version: 1, modified: now, made: now });
        id
    }

    pub fn set(&self, id: u64, field: &str, value: &str) {
        let now = self.now();
        let mut records = self.records.lock().unwrap();
        let record = records.get_mut(&id).unwrap();
        record.fields.insert(field.to_owned(), Value::from(value));
        record.version += 1;
        record.modified = now;
    }

    /// The records, as `id: email`.
    pub fn emails(&self) -> Vec<String> {
        let records = self.records.lock().unwrap();
        records
            .iter()
            .map(|(id, stored)| {
                format!("{id}: {}", stored.fields.get("email").and_then(Value::as_str).unwrap_or("-"))
            })
            .collect()
    }

    fn record(&self, id: u64, stored: &Stored, wanted: &[&Field]) -> Record {
        // The wire tells whole seconds.
        let modified = stored.modified.div_euclid(1_000_000);
        Record {
            id: id.to_string(),
            version: self.abilities.versions.then(|| stored.version.to_string()),
            modified: Timestamp::from_second(modified).ok(),
            fields: wanted
                .iter()
                .filter_map(|field| Some((field.name.clone(), stored.fields.get(&field.target)?.clone())))
                .collect(),
        }
    }

    fn id(id: &str) -> Result<u64, CrmError> {
        id.parse().map_err(|_| CrmError::new(Problem::NotFound))
    }

    fn store(&self, stored: &mut Stored, fields: &[Given<'_>]) {
        *self.writes.lock().unwrap() += 1;
        for given in fields.iter().filter(|given| self.drops != Some(given.field.target.as_str())) {
            let text = given.value.as_str().filter(|_| self.trims);
            let value = text.map_or_else(|| given.value.clone(), |text| Value::from(text.trim()));
            stored.fields.insert(given.field.target.clone(), value);
        }
        stored.modified = self.now();
    }

    fn lost<T>(&self, lost: Option<Mishap>, done: T) -> Result<T, CrmError> {
        match lost {
            Some(_) => Err(CrmError::new(Problem::Ambiguous)),
            None => Ok(done),
        }
    }
}

impl Dialect for Memory {
    fn abilities(&self) -> Abilities {
        self.abilities.clone()
    }

    fn probe<'a>(&'a self, _: &'a Talk) -> Boxed<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn get<'a>(
        &'a self,
        _: &'a Talk,
        _: &'a Entity,
        id: &'a str,
        wanted: &'a [&'a Field],
    ) -> Boxed<'a, Record> {
        Box::pin(async move {
            let id = Self::id(id)?;
            let records = self.records.lock().unwrap();
            let stored = records.get(&id).ok_or(Problem::NotFound)?;
            Ok(self.record(id, stored, wanted))
        })
    }

    fn find<'a>(
        &'a self,
        _: &'a Talk,
        _: &'a Entity,
        wanted: &'a [&'a Field],
        filter: &'a [Given<'a>],
        page: Page<'a>,
    ) -> Boxed<'a, Listed> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let records = self.records.lock().unwrap();
            let from: u64 = page.cursor.map_or(0, |cursor| cursor.parse().unwrap());
            let folded = |value: &Value| value.as_str().map(|text| text.trim().to_lowercase());
            let is = |found: &Value, value: &Value| {
                found == value || (self.folds && folded(found) == folded(value))
            };
            let fits = |stored: &Stored| {
                let holds = |given: &Given<'_>| {
                    stored.fields.get(&given.field.target).is_some_and(|found| is(found, given.value))
                };
                self.ignores_filter || filter.iter().all(holds)
            };
            if self.sparse {
                // Its cursors count half steps: an empty page, then one of one record.
                let id = from.div_ceil(2);
                let full = from % 2 == 1;
                let next = records.range(id..).any(|(_, stored)| full || fits(stored));
                let record = records.get(&id).filter(|stored| full && fits(stored));
                let found = record.map(|stored| self.record(id, stored, wanted)).into_iter().collect();
                return Ok(Listed { records: found, next: next.then(|| (from + 1).to_string()) });
            }
            let found: Vec<Record> = records
                .range(from..)
                .filter(|(_, stored)| fits(stored))
                .take(page.limit)
                .map(|(id, stored)| self.record(*id, stored, wanted))
                .collect();
            let next = found.last().filter(|_| found.len() == page.limit);
            let next = next.map(|last| (last.id.parse::<u64>().unwrap() + 1).to_string());
            Ok(Listed { records: found, next })
        })
    }

    fn create<'a>(&'a self, _: &'a Talk, _: &'a Entity, fields: &'a [Given<'a>]) -> Boxed<'a, Written> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let key = fields.iter().find(|given| given.field.target == "guid").unwrap().value.clone();
            if self.take(&[Mishap::CreateFirst]).is_some() {
                self.insert(&[("guid", key.as_str().unwrap()), ("email", "other@x")]);
            }
            if let Some((id, keeps)) = self.merges {
                let sent: Vec<_> = fields
                    .iter()
                    .filter(|given| !keeps.contains(&given.field.target.as_str()))
                    .copied()
                    .collect();
                self.store(self.records.lock().unwrap().get_mut(&id).unwrap(), &sent);
                return Ok(Written { id: id.to_string(), version: None });
            }
            let lost = self.take(&[Mishap::LoseReply, Mishap::LoseRequest]);
            let mut id = self.next.lock().unwrap().to_owned();
            if lost != Some(Mishap::LoseRequest) {
                let mut stored = Stored { fields: Map::new(), version: 1, modified: 0, made: 0 };
                self.store(&mut stored, fields);
                stored.made = if self.tells_making { stored.modified } else { 0 };
                let mut records = self.records.lock().unwrap();
                if self.abilities.unique_keys && records.values().any(|stored| stored.fields["guid"] == key) {
                    return Err(CrmError::conflict(Clash::Duplicate, Vec::new()));
                }
                let mut next = self.next.lock().unwrap();
                id = *next;
                *next += 1;
                records.insert(id, stored);
            }
            let id = self.misnames.unwrap_or(id);
            self.lost(lost, Written { id: id.to_string(), version: None })
        })
    }

    fn update<'a>(
        &'a self,
        _: &'a Talk,
        _: &'a Entity,
        id: &'a str,
        fields: &'a [Given<'a>],
        if_version: Option<&'a str>,
    ) -> Boxed<'a, Written> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let id = Self::id(id)?;
            if self.take(&[Mishap::ChangeFirst]).is_some() {
                self.set(id, "phone", "555");
            }
            let lost = self.take(&[Mishap::LoseReply, Mishap::LoseRequest]);
            let mut records = self.records.lock().unwrap();
            let stored = records.get_mut(&id).ok_or(Problem::NotFound)?;
            if if_version.is_some_and(|version| version != stored.version.to_string()) {
                return Err(CrmError::conflict(Clash::Version, vec![id.to_string()]));
            }
            if lost != Some(Mishap::LoseRequest) {
                self.store(stored, fields);
                stored.version += 1;
            }
            let version = self.abilities.versions.then(|| stored.version.to_string());
            self.lost(lost, Written { id: id.to_string(), version })
        })
    }

    fn delete<'a>(
        &'a self,
        _: &'a Talk,
        _: &'a Entity,
        id: &'a str,
        if_version: Option<&'a str>,
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            let id = Self::id(id)?;
            let lost = self.take(&[Mishap::LoseReply, Mishap::LoseRequest]);
            let mut records = self.records.lock().unwrap();
            let stored = records.get(&id).ok_or(Problem::NotFound)?;
            if if_version.is_some_and(|version| version != stored.version.to_string()) {
                return Err(CrmError::conflict(Clash::Version, vec![id.to_string()]));
            }
            if lost != Some(Mishap::LoseRequest) {
                records.remove(&id);
            }
            self.lost(lost, ())
        })
    }

    fn made<'a>(&'a self, _: &'a Talk, _: &'a Entity, id: &'a str) -> Boxed<'a, Option<Timestamp>> {
        Box::pin(async move {
            let made = self.records.lock().unwrap().get(&Self::id(id)?).map_or(0, |stored| stored.made);
            Ok(Timestamp::from_microsecond(made).ok().filter(|_| self.tells_making))
        })
    }

    fn changed<'a>(
        &'a self,
        _: &'a Talk,
        _: &'a Entity,
        wanted: &'a [&'a Field],
        span: Span<'a>,
    ) -> Boxed<'a, Changed> {
        Box::pin(async move {
            let records = self.records.lock().unwrap();
            // Sorted by what the database knows (or by what the wire tells, where that is what keysets are made of).
            let keyset = matches!(self.abilities.feed, Feed::Time { keyset: true, .. });
            let time = |stored: &Stored| {
                if keyset { stored.modified.div_euclid(1_000_000) * 1_000_000 } else { stored.modified }
            };
            let mut sorted: Vec<_> = records.iter().collect();
            sorted.sort_by_key(|(id, stored)| (time(stored), **id));
            if self.shuffles {
                let order = |id: u64| (id * 7919 + span.limit as u64 * 31) % 13;
                sorted.sort_by_key(|(id, stored)| (stored.modified.div_euclid(1_000_000), order(**id)));
            }
            let since = span.since.filter(|_| !self.ignores_filter);
            let after = span.after.map(|(at, id)| (at.as_microsecond(), id.parse::<u64>().unwrap()));
            let fits: Vec<_> = sorted
                .into_iter()
                .filter(|(_, stored)| since.is_none_or(|since| stored.modified >= since.as_microsecond()))
                .filter(|(id, stored)| after.is_none_or(|after| (time(stored), **id) > after))
                .collect();
            let fits: Vec<_> = if let Some(link) = span.next {
                let from: (i64, u64) = serde_json::from_str(link).unwrap();
                fits.into_iter().filter(|(id, stored)| (time(stored), **id) > from).collect()
            } else {
                *self.skipped.lock().unwrap() += span.offset;
                fits.into_iter().skip(span.offset).collect()
            };
            let limit = span.limit.min(self.abilities.max_page);
            let end = fits.len() <= limit;
            let last = fits.get(limit - 1).filter(|_| self.links && !end);
            let next = last.map(|(id, stored)| format!("[{},{id}]", time(stored)));
            let records =
                fits.into_iter().take(limit).map(|(id, stored)| self.record(*id, stored, wanted)).collect();
            Ok(Changed { records, end, next })
        })
    }
}

fn field(name: &str, target: &str) -> Field {
    Field {
        name: name.to_owned(),
        target: target.to_owned(),
        kind: FieldType::Text,
        read_only: false,
        masked: name == "email",
    }
}

/// A connector over it.
pub fn crm(memory: &Arc<Memory>) -> Crm {
    let entity = Entity {
        name: "contact".to_owned(),
        target: "contacts".to_owned(),
        fields: vec![field("external_id", "guid"), field("email", "email"), field("phone", "phone")],
        keys: vec!["external_id".to_owned()],
    };
    let dialect: Arc<dyn Dialect> = Arc::clone(memory) as Arc<dyn Dialect>;
    Crm::new(dialect, Arc::new(exchange()), vec![entity], Vec::new(), CursorKey::derive("s", "crm", "u"))
}

/// A way to a place where nobody listens.
pub fn exchange() -> Exchange {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(crate::http::client::tls_of(false, None, &[]).unwrap())
        .build()
        .unwrap();
    Exchange {
        base: url::Url::parse("http://127.0.0.1:1/").unwrap(),
        client: Client::new(client, &Lane::default()),
        credentials: None,
        tokens: None,
        trust: Credentials::default(),
        secrets: crate::hiding::Secrets::default(),
        max_response: 1 << 20,
        ahead_ms: AtomicI64::new(0),
    }
}

/// Keeps the last intent, as the agent's journal does.
#[derive(Default)]
pub struct Journal(pub Mutex<Option<Intent>>);

impl Gate for Journal {
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            *self.0.lock().unwrap() = Some(intent.clone());
            Ok(())
        })
    }
}

/// A job with its journal, of which attempts are made.
#[derive(Clone)]
pub struct Job {
    id: Uuid,
    pub journal: Arc<Journal>,
}

impl Job {
    pub fn new() -> Self {
        Self { id: Uuid::now_v7(), journal: Arc::default() }
    }

    /// One attempt; `resumed`: after a crash, with the intent of the journal.
    pub async fn attempt(
        &self,
        crm: &Crm,
        operation: &str,
        params: &Value,
        resumed: bool,
    ) -> Result<Value, Failure> {
        let prior_intent = if resumed { self.journal.0.lock().unwrap().clone() } else { None };
        let call = Call {
            job: self.id,
            attempt: 1,
            timeout: Duration::from_secs(5),
            cancel: CancellationToken::new(),
            progress: Progress::default(),
            gate: Arc::clone(&self.journal) as Arc<dyn Gate>,
            prior_intent,
            traceparent: None,
            visible: Visible::default(),
        };
        let mut output = Output::new(Box::new(tokio::io::sink()), 0);
        let no_input: Option<Input> = None;
        let outcome: Outcome = crm.execute(&call, operation, params, no_input, &mut output).await?;
        Ok(outcome.result)
    }
}

/// One attempt of a job of its own.
pub async fn run(crm: &Crm, operation: &str, params: &Value) -> Result<Value, Failure> {
    Job::new().attempt(crm, operation, params, false).await
}
