//! What `EspoCRM`'s metadata says of an entity's fields.
//!
//! A field of its metadata can stand for several attributes of a record (a link for an id and a name, an address for its
//! parts): for each field all the attributes that it might stand for are taken as known.

use crate::crm::{
    dialect::{Described, Description},
    shape,
    vocabulary::FieldType,
};
use serde_json::Value;

/// What may follow a field's name in an attribute.
const SUFFIXES: &[&str] = &[
    "Id",
    "Name",
    "Ids",
    "Names",
    "Type",
    "Types",
    "Columns",
    "Currency",
    "Converted",
    "Street",
    "City",
    "State",
    "Country",
    "PostalCode",
    "Data",
    "Date",
];

/// Reads the answer for `entityDefs.X.fields`; older versions ignore the key and send all metadata.
pub(super) fn read(answer: &Value, entity: &str) -> Option<Description> {
    let all = shape::at(answer, &format!("entityDefs.{entity}.fields"));
    let fields = all.unwrap_or(answer).as_object()?;
    let mut known = Vec::new();
    for (name, field) in fields {
        let Some(kind) = field.get("type").and_then(Value::as_str) else { continue };
        let is = |key: &str| field.get(key) == Some(&Value::Bool(true));
        let compound = matches!(
            kind,
            "link" | "linkParent" | "linkMultiple" | "address" | "personName" | "file" | "image"
        );
        known.push(Described {
            target: name.clone(),
            required: is("required") && !compound,
            read_only: is("readOnly"),
            kind: field_type(kind),
            max_length: field.get("maxLength").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        });
        // Attributes that have a definition of their own come from it.
        let others = SUFFIXES.iter().map(|suffix| format!("{name}{suffix}"));
        known.extend(others.filter(|attribute| !fields.contains_key(attribute)).map(|target| Described {
            target,
            required: false,
            read_only: false,
            kind: None,
            max_length: None,
        }));
    }
    let id =
        Described { target: "id".to_owned(), required: false, read_only: true, kind: None, max_length: None };
    known.push(id);
    (known.len() > 1).then_some(Description { fields: known, complete: true })
}

fn field_type(kind: &str) -> Option<FieldType> {
    Some(match kind {
        "varchar" | "text" | "url" | "email" | "phone" | "enum" | "wysiwyg" | "number" => FieldType::Text,
        "int" | "autoincrement" => FieldType::Integer,
        "float" | "currency" => FieldType::Decimal,
        "bool" => FieldType::Boolean,
        "date" => FieldType::Date,
        "datetime" | "datetimeOptional" => FieldType::DateTime,
        _ => return None,
    })
}
