//! What Odoo is to the configuration: its options, the entities that it has by default, and how it is built.

use super::{
    Odoo,
    rpc::{Api, Found, Rpc},
    values::Place,
};
use crate::{
    BuildError,
    crm::{
        client,
        dialect::Dialect,
        dialects::{KnownEntity, Product},
        exchange::Exchange,
        settings::{Auth, Findings, Settings},
        vocabulary::Entity,
    },
};
use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

const API: &str = "api";
const DATABASE: &str = "database";
const MODULE: &str = "xmlid_module";
const DELETE: &str = "delete";
/// The module part of external ids, as in Odoo's own imports a name that no module has.
const DEFAULT_MODULE: &str = "passerelle";

/// Odoo.
pub(crate) const PRODUCT: Product = Product {
    name: "odoo",
    auth: &["basic", "bearer"],
    options: &[API, DATABASE, MODULE, DELETE],
    entities: &[
        KnownEntity {
            name: "contact",
            target: "res.partner",
            fields: &[
                ("external_id", "xmlid"),
                ("name", "name"),
                ("email", "email"),
                ("phone", "phone"),
                ("company", "parent_id/xmlid"),
                ("street", "street"),
                ("street2", "street2"),
                ("postal_code", "zip"),
                ("city", "city"),
                ("country", "country_id/code"),
                ("language", "lang"),
                ("archived", "!active"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "res.partner",
            fields: &[
                ("external_id", "xmlid"),
                ("name", "name"),
                ("email", "email"),
                ("phone", "phone"),
                ("website", "website"),
                ("vat_number", "vat"),
                ("street", "street"),
                ("street2", "street2"),
                ("postal_code", "zip"),
                ("city", "city"),
                ("country", "country_id/code"),
                ("archived", "!active"),
            ],
        },
        KnownEntity {
            name: "order",
            target: "sale.order",
            fields: &[
                ("external_id", "xmlid"),
                ("number", "name"),
                ("customer", "partner_id/xmlid"),
                ("date", "date_order"),
                ("status", "state"),
                ("currency", "currency_id/name"),
                ("total_excl_tax", "amount_untaxed"),
                ("total_incl_tax", "amount_total"),
                ("lines", "order_line"),
            ],
        },
    ],
    check,
    build,
};

fn check(settings: &Settings, findings: &mut Findings<'_>) {
    let api = settings.option(API).unwrap_or("auto");
    if !matches!(api, "auto" | "jsonrpc" | "json2") {
        findings.wrong("options.api", "expected \"auto\", \"jsonrpc\" or \"json2\"");
    }
    match &settings.auth {
        Some(Auth::Basic { .. }) => {}
        Some(Auth::Bearer { .. }) if api == "json2" => {}
        Some(Auth::Bearer { .. }) => {
            findings.wrong("auth.kind", "a bearer token goes with options.api = \"json2\"; else name the user with kind \"basic\"");
        }
        Some(_) | None => findings.wrong(
            "auth",
            "expected { kind = \"basic\", username = \"the login\", password = { file = \"…\" } } with an API key as the password",
        ),
    }
    if settings.option(DATABASE).is_none() && api != "json2" {
        findings.wrong("options", "needs database, the name of Odoo's database");
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if settings.option(MODULE).is_some_and(|module| module.is_empty() || !module.chars().all(word)) {
        findings.wrong("options.xmlid_module", "expected a word of letters, digits and _");
    }
    if settings.option(DELETE).is_some_and(|how| !matches!(how, "unlink" | "archive")) {
        findings.wrong("options.delete", "expected \"unlink\" or \"archive\"");
    }
    for call in &settings.calls {
        let parts = call.target.as_deref().and_then(|target| target.rsplit_once('.'));
        if parts
            .is_none_or(|(model, method)| model.is_empty() || method.is_empty() || method.starts_with('_'))
        {
            let message = "expected model and public method, the like of \"res.partner.action_archive\"";
            findings.wrong(&format!("calls.{}.target", call.name), message);
        }
        if call.method.is_some() || call.path.is_some() {
            findings.wrong(
                &format!("calls.{}", call.name),
                "takes target, neither method nor path, with this dialect",
            );
        }
    }
}

fn build(settings: &Settings, base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let missing = || BuildError::at("auth", "missing");
    let key = client::secret(settings, base)?.ok_or_else(missing)?;
    let login = match &settings.auth {
        Some(Auth::Basic { username, .. }) => Some(username.clone()),
        _ => None,
    };
    let configured = match settings.option(API) {
        Some("jsonrpc") => Some(Api::JsonRpc),
        Some("json2") => Some(Api::Json2),
        _ => None,
    };
    let by_xmlid = |entity: &Entity| {
        let keys = entity.keys.iter().filter_map(|name| entity.field(name));
        keys.map(Place::of).all(|place| place == Place::Xmlid)
    };
    let rpc = Rpc {
        exchange,
        database: settings.option(DATABASE).map(str::to_owned),
        login,
        key,
        configured,
        found: Mutex::new(Found::default()),
        serial: AtomicU64::new(1),
    };
    Ok(Arc::new(Odoo {
        rpc,
        module: settings.option(MODULE).unwrap_or(DEFAULT_MODULE).to_owned(),
        archives: settings.option(DELETE) == Some("archive"),
        unique_keys: settings.entities.iter().all(by_xmlid),
        models: Mutex::default(),
    }))
}
