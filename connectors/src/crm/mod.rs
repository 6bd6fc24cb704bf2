//! The `crm` connector: records of the local CRM, ERP or the like, in one vocabulary over several products' interfaces.
//!
//! A [`dialect::Dialect`] speaks one product's interface; everything that is the same for all of them is here, once:
//!
//! - [`vocabulary`]: entities and fields by our names, and their values' forms;
//! - [`params`]: what jobs write, held against the vocabulary, and what it demands of the policy;
//! - [`upsert`], [`reading`], [`deletion`], [`changes`]: the operations;
//! - [`exchange`]: the way to the target.
//!
//! The cloud names entities, fields and calls that the operator declared. Nothing it writes becomes a path, a filter or a
//! query of its own.

mod changes;
mod client;
mod cursor;
mod deletion;
mod describe;
mod dialect;
mod dialects;
mod dolibarr;
mod error;
mod espocrm;
mod exchange;
mod feed;
mod key;
mod mask;
mod odata;
mod odoo;
mod pages;
mod params;
mod reading;
mod recent;
mod rest;
mod settings;
mod shape;
mod suitecrm;
#[cfg(test)]
mod tests;
mod tryton;
mod upsert;
mod vocabulary;

use crate::{
    BuildError, Call, Capabilities, Connector, Demands, Failure, Feeds, Input, Kind, OperationSpec, Outcome,
    Output, Repeat,
};
use cursor::CursorKey;
use describe::Known;
use dialect::{Dialect, Listed, Page};
use error::{CrmError, Problem};
use exchange::{Exchange, Talk, request::leads_astray};
use params::{Params, Words};
use passerelle_config::{Diagnostics, Secret, Section};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::MutexGuard;
use vocabulary::{Entity, Field, Given};

pub use settings::Settings;

/// Keys that have their turn each; two that share one only wait for each other.
const TURNS: usize = 256;

/// `connector = "crm"`.
pub struct CrmKind;

/// A configured CRM.
pub struct Crm {
    dialect: Arc<dyn Dialect>,
    exchange: Arc<Exchange>,
    entities: Vec<Entity>,
    calls: Vec<settings::CallSpec>,
    cursors: CursorKey,
    /// One attempt per key at a time.
    turns: Vec<tokio::sync::Mutex<()>>,
    /// What the target said of its entities, by our names, and when.
    descriptions: Mutex<BTreeMap<String, (Instant, Known)>>,
}

impl Kind for CrmKind {
    const NAME: &'static str = "crm";
    type Checked = Settings;
    type Connector = Crm;

    fn operations() -> Vec<OperationSpec> {
        let operation = |(name, params_schema)| OperationSpec {
            name,
            // An upsert finds out by the key what became of an earlier one; a call nobody here knows.
            repeat: if name == "call" { Repeat::Never } else { Repeat::Safe },
            params_schema,
            takes_payload: false,
            makes_output: false,
            needs_paths: false,
        };
        params::schemas().into_iter().map(operation).collect()
    }

    fn settings_schema() -> Value {
        Settings::schema()
    }

    fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Settings> {
        Settings::check(section, diagnostics)
    }

    fn build(checked: &Settings, base: &Path) -> Result<Crm, BuildError> {
        let exchange = Arc::new(client::exchange(checked, base)?);
        let secret = match &checked.cursor_key {
            Some(key) => Some(client::read("cursor_key", key, base)?),
            None => client::secret(checked, base)?,
        };
        let secret = secret.as_ref().map(Secret::expose).unwrap_or_default();
        let dialect = (checked.product.build)(checked, base, Arc::clone(&exchange))?;
        let cursors = CursorKey::derive(secret, &checked.resource, checked.url.as_str());
        Ok(Crm::new(dialect, exchange, checked.entities.clone(), checked.calls.clone(), cursors))
    }
}

impl Crm {
    fn new(
        dialect: Arc<dyn Dialect>,
        exchange: Arc<Exchange>,
        entities: Vec<Entity>,
        calls: Vec<settings::CallSpec>,
        cursors: CursorKey,
    ) -> Self {
        let turns = std::iter::repeat_with(tokio::sync::Mutex::default).take(TURNS).collect();
        Self { dialect, exchange, entities, calls, cursors, turns, descriptions: Mutex::default() }
    }

    fn words(&self) -> Words<'_> {
        Words { entities: &self.entities, calls: &self.calls }
    }

    /// A page of a search, which names no record that could be missing.
    async fn find(
        &self,
        talk: &Talk,
        entity: &Entity,
        wanted: &[&Field],
        filter: &[Given<'_>],
        page: Page<'_>,
    ) -> Result<Listed, CrmError> {
        let listed = self.dialect.find(talk, entity, wanted, filter, page).await;
        let listed = listed.map_err(|error| error.of_collection(&entity.name))?;
        // What the target calls so is no fault of the job that would be refused for it later.
        if listed.records.iter().any(|record| leads_astray(&record.id)) {
            return Err(CrmError::new(Problem::Protocol).reason("a record of a search has no id"));
        }
        Ok(listed)
    }

    /// Waits for the turn of a key.
    async fn turn(&self, entity: &Entity, key: &Value) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        entity.name.hash(&mut hasher);
        key.to_string().hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        match self.turns.get(index) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        }
    }
}

/// The fields to read: those that the job asks for, else all; of them those that the rule lets be shown.
fn wanted<'e>(call: &Call, entity: &'e Entity, asked: Option<Vec<&'e Field>>) -> Vec<&'e Field> {
    let asked = asked.unwrap_or_else(|| entity.fields.iter().collect());
    asked.into_iter().filter(|field| call.visible.shows(&field.name)).collect()
}

impl Connector for Crm {
    fn capabilities(&self) -> Capabilities {
        Capabilities { kind: CrmKind::NAME, operations: CrmKind::operations() }
    }

    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure> {
        self.words().check(operation, params).map(|params| params.demands())
    }

    async fn probe(&self, timeout: Duration) -> Result<(), Failure> {
        let probed = self.dialect.probe(&Talk::within(timeout)).await;
        probed.map_err(|error| self.exchange.secrets.leave(error.into()))
    }

    fn feeds(&self) -> Option<&dyn Feeds> {
        Some(self)
    }

    async fn execute(
        &self,
        call: &Call,
        operation: &str,
        params: &Value,
        _input: Option<Input>,
        _output: &mut Output,
    ) -> Result<Outcome, Failure> {
        let params = self.words().check(operation, params)?;
        if call.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        let masked = mask::values(&params);
        let host = self.exchange.base.host_str();
        self.perform(call, params).await.map_err(|failure| {
            let failure = self.exchange.secrets.leave(mask::without(failure, &masked));
            mask::without_host(failure, host)
        })
    }
}

impl Crm {
    async fn perform(&self, call: &Call, params: Params<'_>) -> Result<Outcome, Failure> {
        match params {
            Params::Upsert { entity, key, fields, if_version, dry_run } => {
                let upsert = upsert::Upsert { entity, key, fields, if_version };
                if dry_run {
                    upsert::dry_run::run(self, &Talk::from(call), &upsert).await
                } else {
                    upsert::run(self, call, &upsert).await
                }
            }
            Params::Get { entity, which, fields } => {
                reading::get(self, call, entity, &which, &wanted(call, entity, fields)).await
            }
            Params::Find { entity, filter, fields, limit, cursor } => {
                let find = reading::Find { entity, filter, limit, cursor };
                reading::find(self, call, &find, &wanted(call, entity, fields)).await
            }
            Params::Changes { entity, from, fields, limit } => {
                let fields = wanted(call, entity, fields);
                let mut limit = limit;
                loop {
                    let page = changes::page(self, &Talk::from(call), entity, &fields, &from, limit).await?;
                    let outcome = feed::outcome(page);
                    match reading::shorter(limit, &outcome.result) {
                        Some(shorter) => limit = shorter,
                        None => return Ok(outcome),
                    }
                    call.progress.beat();
                }
            }
            Params::Delete { entity, which, if_version, dry_run } => {
                deletion::run(self, call, entity, &which, if_version.as_deref(), dry_run).await
            }
            Params::Call { call: spec, args } => {
                upsert::pass(call, serde_json::json!({ "crm": "call", "name": spec.name })).await?;
                let result = self.dialect.call(&Talk::from(call), spec, &args).await?;
                let result =
                    if result.is_object() { result } else { serde_json::json!({ "result": result }) };
                Ok(Outcome { result, synced: None, leaves: false })
            }
        }
    }
}
