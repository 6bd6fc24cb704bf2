//! What a service says of its own model (`$metadata`, CSDL): the properties of each entity set, and their types.

use crate::crm::vocabulary::FieldType;
use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};
use std::collections::BTreeMap;

/// A property of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Property {
    /// `Edm.String`, say.
    pub(super) edm: String,
    /// It may not be null, and has no default.
    pub(super) required: bool,
    /// The most characters.
    pub(super) max_length: Option<usize>,
}

/// What is known of an entity set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Its properties.
    pub(super) properties: BTreeMap<String, Property>,
    /// It may have properties that are not declared.
    pub(super) open: bool,
}

#[derive(Default)]
struct Type {
    base: Option<String>,
    open: bool,
    properties: BTreeMap<String, Property>,
}

/// The most types looked at; Dynamics has some hundreds.
const MAX_TYPES: usize = 20_000;
/// The longest line of ancestors.
const MAX_DEPTH: usize = 16;

/// Reads the entity sets of these names. `None` if it is no such document.
pub(super) fn read(document: &[u8], wanted: &[&str]) -> Option<BTreeMap<String, Set>> {
    let mut reader = Reader::from_reader(document);
    let mut types: BTreeMap<String, Type> = BTreeMap::new();
    let mut sets: BTreeMap<String, String> = BTreeMap::new();
    let mut current: Option<String> = None;
    let mut is_csdl = false;
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => {
                is_csdl |= tag.local_name().as_ref() == b"Edmx";
                open(&tag, &mut types, &mut sets, &mut current);
            }
            Event::Empty(tag) => {
                let kept = current.clone();
                open(&tag, &mut types, &mut sets, &mut current);
                // A type without content has no end of its own.
                current = kept;
            }
            Event::End(tag) if matches!(tag.local_name().as_ref(), b"EntityType" | b"ComplexType") => {
                current = None;
            }
            Event::Eof => break,
            _ => {}
        }
        if types.len() > MAX_TYPES {
            return None;
        }
    }
    let found = wanted.iter().filter_map(|name| {
        let set = inherited(&types, sets.get(*name)?)?;
        Some(((*name).to_owned(), set))
    });
    is_csdl.then(|| found.collect())
}

fn open(
    tag: &BytesStart<'_>,
    types: &mut BTreeMap<String, Type>,
    sets: &mut BTreeMap<String, String>,
    current: &mut Option<String>,
) {
    let attribute = |name: &str| {
        let found = tag.try_get_attribute(name).ok().flatten()?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    };
    // Names are told with their namespace, or an alias of it: the last part is unique enough within a service.
    let last = |name: String| name.rsplit('.').next().map(str::to_owned);
    match tag.local_name().as_ref() {
        b"EntityType" => {
            let Some(name) = attribute("Name") else { return };
            let base = attribute("BaseType").and_then(last);
            let open = attribute("OpenType").as_deref() == Some("true");
            types.insert(name.clone(), Type { base, open, properties: BTreeMap::new() });
            *current = Some(name);
        }
        b"ComplexType" => *current = None,
        b"Property" => {
            let kept = current.as_ref().and_then(|name| types.get_mut(name));
            let (Some(kept), Some(name), Some(edm)) = (kept, attribute("Name"), attribute("Type")) else {
                return;
            };
            let required =
                attribute("Nullable").as_deref() == Some("false") && attribute("DefaultValue").is_none();
            let max_length = attribute("MaxLength").and_then(|text| text.parse().ok());
            kept.properties.insert(name, Property { edm, required, max_length });
        }
        b"EntitySet" => {
            if let (Some(name), Some(of)) = (attribute("Name"), attribute("EntityType").and_then(last)) {
                sets.insert(name, of);
            }
        }
        _ => {}
    }
}

fn inherited(types: &BTreeMap<String, Type>, name: &str) -> Option<Set> {
    let mut set = Set::default();
    let mut next = Some(name);
    for _ in 0..MAX_DEPTH {
        let Some(name) = next else { break };
        let found = types.get(name)?;
        set.open |= found.open;
        for (name, property) in &found.properties {
            set.properties.entry(name.clone()).or_insert_with(|| property.clone());
        }
        next = found.base.as_deref();
    }
    Some(set)
}

/// The type of ours that a service's type stands for.
pub(super) fn field_type(edm: &str) -> Option<FieldType> {
    match edm {
        "Edm.String" | "Edm.Guid" => Some(FieldType::Text),
        "Edm.Byte" | "Edm.SByte" | "Edm.Int16" | "Edm.Int32" | "Edm.Int64" => Some(FieldType::Integer),
        "Edm.Decimal" | "Edm.Double" | "Edm.Single" => Some(FieldType::Decimal),
        "Edm.Boolean" => Some(FieldType::Boolean),
        "Edm.Date" => Some(FieldType::Date),
        "Edm.DateTimeOffset" => Some(FieldType::DateTime),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    /// Shortened from the form that Microsoft's documentation of the Web API shows.
    const DOCUMENT: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<edmx:Edmx Version="4.0" xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx"><edmx:DataServices>
<Schema Namespace="Microsoft.Dynamics.CRM" Alias="mscrm" xmlns="http://docs.oasis-open.org/odata/ns/edm">
<EntityType Name="crmbaseentity" Abstract="true" />
<EntityType Name="contact" BaseType="mscrm.crmbaseentity">
 <Key><PropertyRef Name="contactid" /></Key>
 <Property Name="contactid" Type="Edm.Guid"><Annotation Term="x" String="y" /></Property>
 <Property Name="lastname" Type="Edm.String" Unicode="false" MaxLength="50" Nullable="false" />
 <NavigationProperty Name="owner" Type="mscrm.principal" />
</EntityType>
<ComplexType Name="Address"><Property Name="zip" Type="Edm.String" /></ComplexType>
<EntityType Name="bag" OpenType="true"><Property Name="id" Type="Edm.Int32" /></EntityType>
<EntityContainer Name="System"><EntitySet Name="contacts" EntityType="Microsoft.Dynamics.CRM.contact" />
<EntitySet Name="bags" EntityType="mscrm.bag"></EntitySet></EntityContainer>
</Schema></edmx:DataServices></edmx:Edmx>"#;

    #[test]
    fn the_properties_of_a_set_are_read_with_those_of_its_ancestors() {
        let sets = read(DOCUMENT.as_bytes(), &["contacts", "bags", "nopes"]).unwrap();
        let contacts = &sets["contacts"];
        assert_eq!(contacts.properties.keys().collect::<Vec<_>>(), ["contactid", "lastname"]);
        let lastname = &contacts.properties["lastname"];
        assert_eq!(
            (lastname.edm.as_str(), lastname.required, lastname.max_length),
            ("Edm.String", true, Some(50))
        );
        assert!(!contacts.open && sets["bags"].open && !sets.contains_key("nopes"));
    }

    #[test]
    fn what_is_no_model_is_told_from_one_without_the_set() {
        assert_eq!(read(b"<html><body>hello</body></html>", &["contacts"]), None);
        assert_eq!(read(b"{\"error\":{}}", &["contacts"]), None);
        assert_eq!(read(b"<a><b></a>", &["contacts"]), None);
    }
}
