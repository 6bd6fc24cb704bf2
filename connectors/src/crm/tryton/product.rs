//! What Tryton is to the configuration: its options, the entities that it has by default, and how it is built.

use super::{Procedure, Tryton, is_name, model::Models, session::Server, target::Target};
use crate::{
    BuildError,
    crm::{
        client,
        dialect::Dialect,
        dialects::{KnownEntity, Product},
        exchange::Exchange,
        settings::{Auth, Findings, Settings},
    },
};
use std::{path::Path, sync::Arc};

/// The product, as operators choose it.
pub(crate) const PRODUCT: Product = Product {
    name: "tryton",
    auth: &["basic"],
    options: &[],
    entities: &[
        KnownEntity {
            name: "contact",
            target: "party.party",
            fields: &[
                ("external_id", "code"),
                ("name", "name"),
                ("email", "contact_mechanisms[type=email].value"),
                ("phone", "contact_mechanisms[type=phone].value"),
                ("mobile", "contact_mechanisms[type=mobile].value"),
                ("street", "addresses[].street"),
                ("postal_code", "addresses[].postal_code"),
                ("city", "addresses[].city"),
                ("country", "addresses[].country.code"),
                ("language", "lang.code"),
                ("archived", "!active"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "party.party",
            fields: &[
                ("external_id", "code"),
                ("name", "name"),
                ("email", "contact_mechanisms[type=email].value"),
                ("phone", "contact_mechanisms[type=phone].value"),
                ("website", "contact_mechanisms[type=website].value"),
                ("vat_number", "identifiers[type=eu_vat].code"),
                ("street", "addresses[].street"),
                ("postal_code", "addresses[].postal_code"),
                ("city", "addresses[].city"),
                ("country", "addresses[].country.code"),
                ("archived", "!active"),
            ],
        },
    ],
    check,
    build,
};

fn check(settings: &Settings, findings: &mut Findings<'_>) {
    if settings.auth.is_none() {
        findings.wrong("auth", "missing; write kind \"basic\" with the user's login and password");
    }
    for entity in &settings.entities {
        for field in entity.fields.iter().filter(|field| Target::parse(&field.target).is_none()) {
            let message = format!(
                "{:?} is no field of Tryton; write the like of name, lang.code, addresses[].city or contact_mechanisms[type=email].value",
                field.target
            );
            findings.wrong(&format!("entities.{}.fields.{}", entity.name, field.name), message);
        }
        if !entity.target.split('.').all(|part| !part.is_empty() && is_name(part)) {
            let message =
                format!("{:?} is no model of Tryton; write the like of \"party.party\"", entity.target);
            findings.wrong(&format!("entities.{}.target", entity.name), message);
        }
    }
    for call in &settings.calls {
        let sound = call
            .target
            .as_deref()
            .and_then(Procedure::parse)
            .is_some_and(|procedure| procedure.args.iter().all(|(name, _)| call.args.contains_key(name)));
        if !sound {
            let message = "expected a model's method with its arguments in order, such as \"sale.sale.quote([id])\", each one declared in args";
            findings.wrong(&format!("calls.{}.target", call.name), message);
        }
    }
}

fn build(settings: &Settings, base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let missing = || BuildError::at("auth", "expected kind \"basic\"");
    let Some(Auth::Basic { username, .. }) = &settings.auth else { return Err(missing()) };
    let password = client::secret(settings, base)?.ok_or_else(missing)?;
    // Only the code of a party is unique by itself.
    let unique_keys = settings.entities.iter().all(|entity| {
        let mut keys = entity.keys.iter().filter_map(|name| entity.field(name));
        entity.target == "party.party" && keys.all(|key| key.target == "code")
    });
    let first = settings.entities.first().map(|entity| entity.target.clone()).unwrap_or_default();
    Ok(Arc::new(Tryton {
        server: Server::new(exchange, username.clone(), password),
        models: Models::default(),
        unique_keys,
        first,
    }))
}
