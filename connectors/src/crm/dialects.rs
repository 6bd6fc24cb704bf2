//! The dialects that ship: an explicit list. A new one is a folder and one line here.

use super::{
    dialect::Dialect,
    dolibarr, espocrm,
    exchange::Exchange,
    odata, odoo, rest,
    settings::{Findings, Settings},
    suitecrm, tryton,
};
use crate::BuildError;
use std::{path::Path, sync::Arc};

/// A product whose interface a dialect speaks.
pub(crate) struct Product {
    /// What operators write as `dialect = "…"`.
    pub(crate) name: &'static str,
    /// The kinds of `auth` it takes.
    pub(crate) auth: &'static [&'static str],
    /// The names of its `options`.
    pub(crate) options: &'static [&'static str],
    /// The entities it knows by our names.
    pub(crate) entities: &'static [KnownEntity],
    /// Checks options, auth and calls; pure.
    pub(crate) check: fn(&Settings, &mut Findings<'_>),
    /// Builds the dialect; may read secrets (relative to the folder), does not connect.
    pub(crate) build: Build,
}

/// Builds a dialect of checked settings.
pub(crate) type Build = fn(&Settings, &Path, Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError>;

/// What a product calls an entity and its fields.
#[derive(Debug)]
pub(crate) struct KnownEntity {
    /// Ours.
    pub(crate) name: &'static str,
    /// Its own.
    pub(crate) target: &'static str,
    /// Our name and its own.
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

impl std::fmt::Debug for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every product, in the order in which they are named to operators.
pub(crate) static PRODUCTS: &[Product] = &[
    rest::PRODUCT,
    tryton::PRODUCT,
    odata::PRODUCT,
    odoo::PRODUCT,
    espocrm::PRODUCT,
    dolibarr::PRODUCT,
    suitecrm::PRODUCT,
];

/// The names of all dialects.
pub(crate) fn names() -> Vec<&'static str> {
    PRODUCTS.iter().map(|product| product.name).collect()
}
