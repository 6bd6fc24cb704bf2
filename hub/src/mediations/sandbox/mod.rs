//! Where templates of definitions are filled: in processes of their own, which may die.
//!
//! The template language has no bound for the memory that one expression takes, nor for the time that it compares: values
//! that hold each other are small until they become a text. A definition made for it would end the hub, for every tenant. So
//! the hub hands templates and the names that they see to a *worker*, which is this program again with a limit of memory and
//! computing time, and takes texts and values back. A worker that ends is the failure of one step; the next one is started.
//!
//! Short templates share a few workers that are kept, each tenant one at a time. What renders a file or writes a column has
//! a worker of its own, as long as that lasts.

mod frames;
mod process;
mod size;
mod worker;

pub(crate) use frames::Filled;
pub(crate) use process::Fault;

use super::{
    formats::{self, Record, write::Evaluate},
    template::{Source, Wanted},
};
use frames::{Kind, Names, Request};
use passerelle_protocol::Name;
use process::Worker;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value as Json};
use size::{Size, Sizes};
use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// The hidden first argument that makes this program a worker.
pub const TEMPLATES_PART: &str = "__templates";

/// How many workers fill short templates at once.
const WORKERS: usize = 4;
/// How many items are filled with one message.
pub(crate) const BATCH: usize = 50;
/// How many tenants are remembered who fill nothing now.
const MAX_TENANTS: usize = 1000;

/// The workers of a hub: a cheap handle.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    sizes: Sizes,
    stop: CancellationToken,
    idle: Mutex<Vec<Worker>>,
    workers: Semaphore,
    tenants: Mutex<HashMap<Name, Arc<Semaphore>>>,
}

/// Runs a worker in this process, if `args` (the program first) ask for one: before anything else of it is begun.
#[must_use]
pub fn part(args: &[OsString]) -> Option<ExitCode> {
    let asked = args.get(1).is_some_and(|first| first == TEMPLATES_PART);
    asked.then(|| {
        let words: Vec<&str> = args.iter().skip(2).filter_map(|word| word.to_str()).collect();
        worker::run(Size::of_words(&words))
    })
}

impl Sandbox {
    /// Workers that run this program again.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        // The program that runs, whatever lies under its name by now.
        Self::running("/proc/self/exe", stop)
    }

    /// Workers that run another program: `passerelle-hub`, where this one is not it.
    #[must_use]
    pub fn running(program: impl Into<PathBuf>, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            program: program.into(),
            sizes: Sizes::here(),
            stop,
            idle: Mutex::default(),
            workers: Semaphore::new(WORKERS),
            tenants: Mutex::default(),
        }))
    }

    /// Fills short templates for each of `items`, whose names are put over `names`. To be called for few items at once
    /// ([`BATCH`]): what it gives is held in memory.
    ///
    /// # Errors
    /// What ended all of it; what does not fit one item is among what is given.
    pub(crate) async fn fill(
        &self,
        tenant: &Name,
        names: &Map<String, Json>,
        items: &[Map<String, Json>],
        wanted: &[Wanted],
    ) -> Result<Vec<Filled>, Fault> {
        if let Some(fixed) = wanted.iter().map(Wanted::fixed).collect::<Option<Vec<_>>>() {
            return Ok(items.iter().map(|_| Ok(fixed.iter().cloned().map(Some).collect())).collect());
        }
        let mut filled = Vec::with_capacity(items.len());
        let (mut left, mut batch) = (items, BATCH);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let request = Request::Fill {
                names: Names::Borrowed(names),
                items: now.iter().map(Names::Borrowed).collect(),
                wanted: Cow::Borrowed(wanted),
            };
            match self.ask::<Vec<Filled>>(tenant, &request).await {
                Ok(done) => {
                    filled.extend(done);
                    left = later;
                }
                Err(Fault::TooMuch(_)) if now.len() > 1 => batch = now.len() / 2,
                Err(fault) => return Err(fault),
            }
        }
        Ok(filled)
    }

    /// Compiles texts of a definition; gives what is wrong with each of them.
    ///
    /// # Errors
    /// What ended all of it.
    pub(crate) async fn check(
        &self,
        tenant: &Name,
        sources: impl Iterator<Item = &Source>,
    ) -> Result<Vec<Vec<String>>, Fault> {
        let request = Request::<Names<'_>>::Check(sources.map(Cow::Borrowed).collect());
        self.ask(tenant, &request).await
    }

    /// The answer of a small worker, which is kept.
    async fn ask<T: DeserializeOwned>(&self, tenant: &Name, request: &impl Serialize) -> Result<T, Fault> {
        let own = self.of_tenant(tenant);
        // Neither is ever closed.
        let _own = own.acquire().await;
        let _place = self.0.workers.acquire().await;
        let mut worker = self.take()?;
        let answer = self
            .unless_stopped(async {
                worker.ask(request).await?;
                worker.done().await
            })
            .await?;
        if worker.is_fit() {
            self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
        Ok(answer)
    }

    /// Renders a template; `out` gets pieces of the text. To be called where waiting is allowed.
    ///
    /// # Errors
    /// What does not fit, or what `out` says.
    pub(crate) fn render(
        &self,
        template: &str,
        names: Map<String, Json>,
        out: &mut dyn FnMut(&str) -> Result<(), formats::Error>,
    ) -> Result<(), formats::Error> {
        let handle = Handle::current();
        let mut worker = self.start(self.0.sizes.large)?;
        let request = Request::Render { template: template.into(), names: Names::Owned(names) };
        handle.block_on(self.unless_stopped(worker.ask(&request)))?;
        drop(request);
        loop {
            match handle.block_on(self.unless_stopped(worker.answer()))? {
                (Kind::Text, text) => out(&String::from_utf8_lossy(&text))?,
                _ => return Ok(()),
            }
        }
    }

    /// A worker for the values of columns. To be called, and asked, where waiting is allowed.
    pub(crate) fn columns(&self) -> Columns {
        Columns { sandbox: self.clone(), worker: None }
    }

    fn of_tenant(&self, tenant: &Name) -> Arc<Semaphore> {
        let mut tenants = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MAX_TENANTS {
            tenants.retain(|_, place| Arc::strong_count(place) > 1);
        }
        Arc::clone(tenants.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }

    fn start(&self, size: Size) -> Result<Worker, Fault> {
        Worker::start(&self.0.program, size)
    }

    fn take(&self) -> Result<Worker, Fault> {
        loop {
            let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut worker) = idle else { return self.start(self.0.sizes.small) };
            // It may have been ended from outside meanwhile.
            if worker.is_fit() {
                return Ok(worker);
            }
        }
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::select! {
            done = work => done,
            () = self.0.stop.cancelled() => Err(Fault::Passing("the hub ends".to_owned())),
        }
    }
}

/// Values of columns, from a worker that is started with the first records.
pub(crate) struct Columns {
    sandbox: Sandbox,
    worker: Option<Worker>,
}

impl Evaluate for Columns {
    fn values(
        &mut self,
        expressions: &[String],
        records: &[Record],
    ) -> Result<formats::write::Values, formats::Error> {
        let handle = Handle::current();
        let worker = match &mut self.worker {
            Some(worker) => worker,
            None => {
                let mut worker = self.sandbox.start(self.sandbox.0.sizes.large)?;
                let request = Request::<Names<'_>>::Expressions(expressions.into());
                handle.block_on(self.sandbox.unless_stopped(async {
                    worker.ask(&request).await?;
                    worker.done::<()>().await
                }))?;
                self.worker.insert(worker)
            }
        };
        Ok(handle.block_on(self.sandbox.unless_stopped(async {
            worker.ask(&records).await?;
            worker.done().await
        }))?)
    }
}

impl From<Fault> for formats::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Passing(why) => Self::Passing(why),
            fault => Self::Data(fault.said("").0),
        }
    }
}
