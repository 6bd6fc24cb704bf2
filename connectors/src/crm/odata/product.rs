//! What OData is to the configuration: its options, the entities that it has by default, and how it is built.

use super::{
    OData,
    place::{Place, is_name},
};
use crate::{
    BuildError,
    crm::{
        dialect::Dialect,
        dialects::{KnownEntity, Product},
        exchange::Exchange,
        settings::{Findings, Settings},
    },
};
use std::{
    path::Path,
    sync::{Arc, Mutex},
};

/// The product, as operators choose it.
pub(crate) const PRODUCT: Product = Product {
    name: "odata",
    auth: &["basic", "bearer", "api_key", "oauth2"],
    options: &["upsert", "changes", "modified", "duplicate_detection"],
    // As Dynamics calls them; another service's own names are the operator's to write.
    entities: &[
        KnownEntity {
            name: "contact",
            target: "contacts(contactid)",
            fields: &[
                ("first_name", "firstname"),
                ("last_name", "lastname"),
                ("email", "emailaddress1"),
                ("phone", "telephone1"),
                ("mobile", "mobilephone"),
                ("street", "address1_line1"),
                ("street2", "address1_line2"),
                ("postal_code", "address1_postalcode"),
                ("city", "address1_city"),
                ("country", "address1_country"),
            ],
        },
        KnownEntity {
            name: "company",
            target: "accounts(accountid)",
            fields: &[
                ("external_id", "accountnumber"),
                ("name", "name"),
                ("email", "emailaddress1"),
                ("phone", "telephone1"),
                ("website", "websiteurl"),
                ("street", "address1_line1"),
                ("street2", "address1_line2"),
                ("postal_code", "address1_postalcode"),
                ("city", "address1_city"),
                ("country", "address1_country"),
            ],
        },
        KnownEntity {
            name: "order",
            target: "salesorders(salesorderid)",
            fields: &[
                ("number", "ordernumber"),
                ("total_excl_tax", "totalamountlessfreight"),
                ("total_incl_tax", "totalamount"),
            ],
        },
    ],
    check,
    build,
};

/// When a record last changed, unless `modified` says otherwise.
const MODIFIED: &str = "modifiedon";

fn check(settings: &Settings, findings: &mut Findings<'_>) {
    for (option, words) in [
        ("upsert", ["find", "alternate_key"]),
        ("changes", ["time", "track"]),
        ("duplicate_detection", ["false", "true"]),
    ] {
        if settings.option(option).is_some_and(|given| !words.contains(&given)) {
            let [first, second] = words;
            findings.wrong(&format!("options.{option}"), format!("expected {first:?} or {second:?}"));
        }
    }
    if settings.option("modified").is_some_and(|name| !is_name(name)) {
        findings.wrong("options.modified", "expected a property's name, such as \"modifiedon\"");
    }
    for entity in &settings.entities {
        if Place::parse(&entity.target).is_none() {
            let message = format!(
                "{:?} is no entity set with its id; write the like of \"contacts(contactid)\", or \"Partners('Code')\" where ids are texts",
                entity.target
            );
            findings.wrong(&format!("entities.{}.target", entity.name), message);
        }
        let sound = |target: &str| is_name(target.strip_suffix("@odata.bind").unwrap_or(target));
        for field in entity.fields.iter().filter(|field| !sound(&field.target)) {
            let message = format!("{:?} is no property; write the like of \"lastname\"", field.target);
            findings.wrong(&format!("entities.{}.fields.{}", entity.name, field.name), message);
        }
    }
    for call in settings.calls.iter().filter(|call| call.method.is_none() || call.path.is_none()) {
        let message = "method and path are needed, such as \"POST\" and \"contacts({id})/Microsoft.Dynamics.CRM.Merge\"";
        findings.wrong(&format!("calls.{}", call.name), message);
    }
}

fn build(settings: &Settings, _base: &Path, exchange: Arc<Exchange>) -> Result<Arc<dyn Dialect>, BuildError> {
    let places = settings.entities.iter().filter_map(|entity| Place::parse(&entity.target));
    Ok(Arc::new(OData {
        exchange,
        sets: places.map(|place| place.set).collect(),
        native_upsert: settings.option("upsert") == Some("alternate_key"),
        track: settings.option("changes") == Some("track"),
        detect_duplicates: settings.option("duplicate_detection") == Some("true"),
        modified: settings.option("modified").unwrap_or(MODIFIED).to_owned(),
        model: Mutex::new(None),
    }))
}
