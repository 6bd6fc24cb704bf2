//! The vendor's event envelope: `{"EventKind", "EventCategory", "Data"}`, made of a job's `event {kind, category?, data}`.
//!
//! Events of the catalogue bring their category, and their required fields are looked at; any other kind needs its
//! category said. Our id and signature travel in header fields alone: the envelope is the vendor's.

use crate::{Code, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

const MAX_NAME: usize = 128;

/// An event for the vendor's envelope.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    /// `EventKind`, such as `CommandeValidee`.
    #[schemars(length(min = 1, max = 128))]
    kind: String,
    /// `EventCategory`; may be left out for the kinds of the catalogue.
    #[schemars(length(min = 1, max = 128))]
    category: Option<String>,
    /// `Data`.
    data: Map<String, Value>,
}

/// The envelope, in the vendor's order.
#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "EventKind")]
    kind: &'a str,
    #[serde(rename = "EventCategory")]
    category: &'a str,
    #[serde(rename = "Data")]
    data: &'a Map<String, Value>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Form {
    Guid,
    Text,
    Number,
    Date,
    List(&'static [Field]),
    Object(&'static [Field]),
    /// Whatever; also null.
    Any,
}

/// A field of `Data`.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    form: Form,
    /// Whether it may be missing or null.
    optional: bool,
}

const fn needed(name: &'static str, form: Form) -> Field {
    Field { name, form, optional: false }
}

const fn optional(name: &'static str, form: Form) -> Field {
    Field { name, form, optional: true }
}

const ORDER_VALIDATED: &[Field] = &[
    needed("CommandeGuid", Form::Guid),
    needed("ClientGuid", Form::Guid),
    needed("CommandeNumero", Form::Text),
    needed("CommandeIP", Form::Text),
    needed("ClientEmail", Form::Text),
    needed("CommandeMontantTotal", Form::Number),
    needed("ModeLivraisonGuid", Form::Guid),
    optional("PointLivraisonGuid", Form::Guid),
    optional("MagasinAssocieGuid", Form::Guid),
];
const ORDER_CONFIRMED: &[Field] = &[
    needed("BcdGuid", Form::Guid),
    needed("Numero", Form::Text),
    needed("ClientGuid", Form::Guid),
    needed("MontantTtc", Form::Number),
    needed("MontantHt", Form::Number),
    needed("Origine", Form::Any),
    needed("Type", Form::Any),
    needed("MagasinAssocie", Form::Any),
    needed("Lignes", Form::List(&[])),
    needed("IntentionsReglement", Form::List(&[])),
    needed("Client", Form::Object(&[])),
];
const MEDIATION: &[Field] = &[
    needed(
        "Definition",
        Form::Object(&[
            needed("Guid", Form::Guid),
            needed("Libelle", Form::Text),
            optional("StandardGuid", Form::Guid),
        ]),
    ),
    needed("Guid", Form::Guid),
    needed("DateCreation", Form::Date),
    needed("EtatCode", Form::Any),
    needed("EtatLibelle", Form::Text),
    needed(
        "Flux",
        Form::List(&[
            needed("Guid", Form::Guid),
            needed("Libelle", Form::Text),
            needed("Sens", Form::Any),
            needed("EstTraite", Form::Any),
        ]),
    ),
    needed("DerniersMessages", Form::List(&[])),
];
const CUSTOMER: &[Field] = &[
    needed("Guid", Form::Guid),
    optional("Nom", Form::Text),
    optional("MainEMail", Form::Text),
    optional("Telephone", Form::Text),
    optional("Mobile", Form::Text),
    optional("NumeroTva", Form::Text),
    optional("CompteCompta", Form::Text),
    optional("DateCreation", Form::Date),
];

/// The kinds whose fields are known. The last two are ours, on the vendor's naming pattern: its catalogue has none for
/// customers.
const CATALOGUE: &[(&str, &str, &[Field])] = &[
    ("CommandeValidee", "e/commerce", ORDER_VALIDATED),
    ("ConfirmationBcd", "e/rp", ORDER_CONFIRMED),
    ("MediationCreation", "e/rp", MEDIATION),
    ("MediationTerminee", "e/rp", MEDIATION),
    ("MediationTermineeOk", "e/rp", MEDIATION),
    ("MediationTermineeErr", "e/rp", MEDIATION),
    ("CreationClient", "e/rp", CUSTOMER),
    ("ModificationClient", "e/rp", CUSTOMER),
];

impl EventParams {
    /// The envelope.
    ///
    /// # Errors
    /// `invalid_params` (permanent) with the field named.
    pub(super) fn envelope(self) -> Result<Vec<u8>, Failure> {
        let Self { kind, category, data } = self;
        name("kind", &kind)?;
        let known = CATALOGUE.iter().find(|(of, _, _)| *of == kind);
        let category = match (category, known) {
            (None, Some((_, category, _))) => (*category).to_owned(),
            (Some(given), Some((_, category, _))) if given != *category => {
                return Err(invalid(format!("event.category: {kind} is of category {category:?}")));
            }
            (Some(given), Some(_) | None) => given,
            (None, None) => {
                let kinds: Vec<&str> = CATALOGUE.iter().map(|(kind, _, _)| *kind).collect();
                let message = format!(
                    "event.category: missing; only the kinds {} bring theirs (they are case-sensitive)",
                    kinds.join(", ")
                );
                return Err(invalid(message));
            }
        };
        name("category", &category)?;
        if let Some((_, _, fields)) = known {
            look(fields, &data, "event.data")?;
        }
        serde_json::to_vec(&Envelope { kind: &kind, category: &category, data: &data })
            .map_err(|e| Failure::permanent(Code::Internal, "the event could not be written").detail(e))
    }
}

fn name(key: &str, text: &str) -> Result<(), Failure> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        let message = format!("event.{key}: expected 1 to {MAX_NAME} bytes without control characters");
        return Err(invalid(message));
    }
    Ok(())
}

fn look(fields: &[Field], data: &Map<String, Value>, at: &str) -> Result<(), Failure> {
    for Field { name, form, optional } in fields {
        let at = format!("{at}.{name}");
        match data.get(*name) {
            None | Some(Value::Null) if *optional => {}
            None => return Err(invalid(format!("{at}: missing"))),
            Some(value) => look_at(*form, value, &at)?,
        }
    }
    Ok(())
}

fn look_at(form: Form, value: &Value, at: &str) -> Result<(), Failure> {
    let expected = match (form, value) {
        (Form::Any, _) | (Form::Text, Value::String(_)) | (Form::Number, Value::Number(_)) => return Ok(()),
        (Form::Guid, Value::String(text)) if text.len() == 36 && Uuid::try_parse(text).is_ok() => {
            return Ok(());
        }
        (Form::Date, Value::String(text)) if is_date(text) => return Ok(()),
        (Form::Object(fields), Value::Object(object)) => return look(fields, object, at),
        (Form::List(fields), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let at = format!("{at}[{index}]");
                match item {
                    _ if fields.is_empty() => {}
                    Value::Object(object) => look(fields, object, &at)?,
                    _ => return Err(invalid(format!("{at}: expected an object"))),
                }
            }
            return Ok(());
        }
        (Form::Guid, _) => "a GUID such as \"20818d87-34bb-5c4e-b14d-e3674b9f022c\"",
        (Form::Text, _) => "a string",
        (Form::Number, _) => "a number",
        (Form::Date, _) => "a time such as \"2026-11-21T06:00:00Z\"",
        (Form::List(_), _) => "a list",
        (Form::Object(_), _) => "an object",
    };
    Err(invalid(format!("{at}: expected {expected}")))
}

/// With a zone or without: the vendor writes both.
fn is_date(text: &str) -> bool {
    text.parse::<jiff::Timestamp>().is_ok() || text.parse::<jiff::civil::DateTime>().is_ok()
}

fn invalid(message: String) -> Failure {
    Failure::permanent(Code::InvalidParams, message)
}

#[cfg(test)]
mod tests {
    use super::{CATALOGUE, EventParams};
    use crate::Code;
    use serde_json::{Value, json};

    const GUID: &str = "20818d87-34bb-5c4e-b14d-e3674b9f022c";

    fn envelope(event: Value) -> Result<Value, String> {
        let event: EventParams = serde_json::from_value(event).unwrap();
        match event.envelope() {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap()),
            Err(failure) => {
                assert_eq!(failure.code, Code::InvalidParams);
                Err(failure.message)
            }
        }
    }

    fn order() -> Value {
        json!({
            "CommandeGuid": GUID, "ClientGuid": GUID, "CommandeNumero": "CMD-2026-000042",
            "CommandeIP": "203.0.113.7", "ClientEmail": "camille.lefevre@example.fr",
            "CommandeMontantTotal": 129.9, "ModeLivraisonGuid": GUID, "PointLivraisonGuid": null,
            "MagasinAssocieGuid": GUID,
        })
    }

    #[test]
    fn an_event_of_the_catalogue_becomes_the_vendors_envelope() {
        let made = envelope(json!({ "kind": "CommandeValidee", "data": order() })).unwrap();
        let expected =
            json!({ "EventKind": "CommandeValidee", "EventCategory": "e/commerce", "Data": order() });
        assert_eq!(made, expected, "what is null stays null");
        let mut short = order();
        short
            .as_object_mut()
            .unwrap()
            .retain(|name, _| !name.starts_with("Point") && !name.starts_with("Magasin"));
        short["Nouveau"] = json!({ "their": "own" });
        let made = envelope(json!({ "kind": "CommandeValidee", "data": short })).unwrap();
        assert_eq!(made["Data"], short, "what is left out stays out, what is new goes along");
    }

    #[test]
    fn every_kind_of_the_catalogue_takes_its_own_fields() {
        let definition = json!({ "Guid": GUID, "Libelle": "Export comptable" });
        let flow = json!({ "Guid": GUID, "Libelle": "FEC", "Sens": "Sortie", "EstTraite": true });
        for (kind, category, _) in CATALOGUE {
            let data = match *kind {
                "CommandeValidee" => order(),
                "ConfirmationBcd" => json!({
                    "BcdGuid": GUID, "Numero": "B-1", "ClientGuid": GUID, "MontantTtc": 12, "MontantHt": 10.0,
                    "Origine": "web", "Type": 1, "MagasinAssocie": null, "Lignes": [{}], "IntentionsReglement": [],
                    "Client": { "Guid": GUID },
                }),
                "CreationClient" | "ModificationClient" => json!({ "Guid": GUID, "Nom": "Lefèvre" }),
                _ => json!({
                    "Definition": definition, "Guid": GUID, "DateCreation": "2026-11-21T06:00:00+01:00",
                    "EtatCode": "OK", "EtatLibelle": "Terminée", "Flux": [flow], "DerniersMessages": [],
                }),
            };
            let made = envelope(json!({ "kind": kind, "data": data })).unwrap();
            assert_eq!((&made["EventKind"], &made["EventCategory"]), (&json!(kind), &json!(category)));
            assert_eq!(made["Data"], data);
        }
        let own =
            envelope(json!({ "kind": "StockModifie", "category": "e/rp", "data": { "a": 1 } })).unwrap();
        assert_eq!(own, json!({ "EventKind": "StockModifie", "EventCategory": "e/rp", "Data": { "a": 1 } }));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let with = |name: &str, value: Value| {
            let mut data = order();
            data[name] = value;
            json!({ "kind": "CommandeValidee", "data": data })
        };
        let mut without = order();
        without.as_object_mut().unwrap().remove("ClientEmail");
        let flow = json!({ "Guid": GUID, "Libelle": "FEC", "Sens": 1 });
        let mediation = json!({ "kind": "MediationTerminee", "data": {
            "Definition": { "Guid": GUID, "Libelle": "x" }, "Guid": GUID, "DateCreation": "2026-11-21T06:00:00",
            "EtatCode": 1, "EtatLibelle": "x", "Flux": [flow], "DerniersMessages": [],
        } });
        for (event, says) in [
            (json!({ "kind": "CommandeValidee", "data": without }), "event.data.ClientEmail: missing"),
            (with("ClientEmail", Value::Null), "event.data.ClientEmail: expected a string"),
            (with("CommandeGuid", json!("x")), "event.data.CommandeGuid: expected a GUID"),
            (with("PointLivraisonGuid", json!(5)), "event.data.PointLivraisonGuid: expected a GUID"),
            (
                with("CommandeMontantTotal", json!("129,90")),
                "event.data.CommandeMontantTotal: expected a number",
            ),
            (mediation, "event.data.Flux[0].EstTraite: missing"),
            (json!({ "kind": "CreationClient", "data": {} }), "event.data.Guid: missing"),
            (
                json!({ "kind": "commandeValidee", "data": order() }),
                "event.category: missing; only the kinds CommandeValidee",
            ),
            (json!({ "kind": "CommandeValidee", "category": "e/rp", "data": order() }), "e/commerce"),
            (json!({ "kind": "", "category": "x", "data": {} }), "event.kind"),
            (json!({ "kind": "a\nb", "category": "x", "data": {} }), "event.kind"),
        ] {
            let message = envelope(event).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
