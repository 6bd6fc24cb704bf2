//! The kinds of connector that ship: an explicit list, so that one can read what there is.
//!
//! A new kind is one folder and one line here.

use crate::{BuildError, DynConnector, Kind, OperationSpec, crm::CrmKind, file::FileKind, http::HttpKind};
use passerelle_config::{Diagnostics, Section};
use serde_json::Value;
use std::{path::Path, sync::Arc};

/// A kind of connector, erased.
pub struct Entry {
    /// What operators write as `connector = "…"`.
    pub name: &'static str,
    /// Whether its resources may have triggers.
    pub triggers: bool,
    operations: fn() -> Vec<OperationSpec>,
    settings_schema: fn() -> Value,
    check: fn(&Section, &mut Diagnostics) -> Option<Checked>,
}

type Build = Box<dyn Fn(&Path) -> Result<Arc<dyn DynConnector>, BuildError> + Send + Sync>;

/// The checked settings of a resource, ready to be built.
pub struct Checked {
    build: Build,
}

impl Checked {
    /// Builds the connector; `base` is the configuration folder that relative paths start from.
    ///
    /// # Errors
    /// If a file that the settings name cannot be used.
    pub fn build(&self, base: &Path) -> Result<Arc<dyn DynConnector>, BuildError> {
        (self.build)(base)
    }
}

impl Entry {
    /// The operations of this kind.
    #[must_use]
    pub fn operations(&self) -> Vec<OperationSpec> {
        (self.operations)()
    }

    /// The JSON Schema of a resource's own settings.
    #[must_use]
    pub fn settings_schema(&self) -> Value {
        passerelle_config::without_null((self.settings_schema)())
    }

    /// Reads a resource's settings; findings go to `diagnostics`.
    pub fn check(&self, section: &Section, diagnostics: &mut Diagnostics) -> Option<Checked> {
        (self.check)(section, diagnostics)
    }
}

const fn entry<K: Kind>() -> Entry {
    Entry {
        name: K::NAME,
        triggers: K::TRIGGERS,
        operations: K::operations,
        settings_schema: K::settings_schema,
        check: |section, diagnostics| {
            let checked = K::check(section, diagnostics)?;
            let build = move |base: &Path| {
                K::build(&checked, base).map(|connector| Arc::new(connector) as Arc<dyn DynConnector>)
            };
            Some(Checked { build: Box::new(build) })
        },
    }
}

/// Every kind.
pub static REGISTRY: &[Entry] = &[entry::<FileKind>(), entry::<HttpKind>(), entry::<CrmKind>()];

/// The names of all kinds.
pub fn kind_names() -> Vec<&'static str> {
    REGISTRY.iter().map(|entry| entry.name).collect()
}
