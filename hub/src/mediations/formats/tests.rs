//! Flows read and written in every format, and what is refused.

use super::{
    Error, Record,
    layout::Layout,
    read,
    write::{Evaluate, Values, Writer},
};
use crate::mediations::rendering::Expressions;
use serde_json::{Value, json};
use std::io::Read;

/// Evaluates in this process what a hub evaluates in another.
pub(in crate::mediations) struct Here;

impl Evaluate for Here {
    fn values(&mut self, expressions: &[String], records: &[Record]) -> Result<Values, Error> {
        let expressions = Expressions::new(expressions).map_err(Error::Data)?;
        let mut made = Vec::new();
        for record in records {
            match expressions.of(minijinja::Value::from(minijinja::value::Serde(record))) {
                Ok((values, _)) => made.push(values),
                Err(unfit) => return Ok((made, Some(unfit))),
            }
        }
        Ok((made, None))
    }
}

fn layout(spec: Value) -> Layout {
    serde_json::from_value(spec).unwrap()
}

fn records(spec: Value, mut bytes: &[u8]) -> Result<Vec<Value>, String> {
    let layout = layout(spec);
    layout.check_read()?;
    let mut found = Vec::new();
    read::records(&mut bytes, &layout, &mut |_, record| {
        found.push(record.into_json());
        Ok(())
    })
    .map_err(|e| e.to_string())?;
    Ok(found)
}

fn convert(from: Value, to: Value, mut bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (from, to) = (layout(from), layout(to));
    from.check_read()?;
    to.check_write()?;
    let mut out = Vec::new();
    let mut here = Here;
    let mut writer = Writer::new(&mut out, &to, &mut here).map_err(|e| e.to_string())?;
    let read = read::records(&mut bytes, &from, &mut |place, record| writer.write(place, record))
        .map_err(|e| e.to_string())?;
    writer.without_records(read.header).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(out)
}

fn text(from: Value, to: Value, bytes: &[u8]) -> Result<String, String> {
    convert(from, to, bytes).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn a_day_without_records_keeps_its_header_and_other_line_ends_are_no_empty_day() {
    let csv = || json!({ "format": "csv", "delimiter": ";" });
    assert_eq!(text(csv(), csv(), b"a;b\r\n").unwrap(), "a;b\r\n");
    let comma = json!({ "format": "csv", "delimiter": ",", "columns": ["b"] });
    assert_eq!(text(csv(), comma, b"a;b\r\n").unwrap(), "b\r\n");
    let bare = json!({ "format": "csv", "delimiter": ";", "header": false, "columns": ["a", "b"] });
    assert_eq!(text(csv(), bare, b"a;b\r\n").unwrap(), "");
    assert_eq!(text(csv(), json!({ "format": "ndjson" }), b"a;b\r\n").unwrap(), "");
    let error = text(csv(), csv(), b"a;b\r1;2\r3;4\r").unwrap_err();
    assert!(error.contains("carriage return"), "{error}");
}

#[test]
fn csv_is_read_as_it_was_meant_whatever_the_fields_hold() {
    let text = "a;b;c\r\n\"x;\"\"y\"\"\r\nz\";2;\r\n\r\n\"a\r\";\" \";\"\"\n1;2;é";
    let found = records(json!({ "format": "csv", "delimiter": ";" }), text.as_bytes()).unwrap();
    assert_eq!(
        found,
        [
            json!({ "a": "x;\"y\"\r\nz", "b": "2", "c": "" }),
            json!({ "a": "a\r", "b": " ", "c": "" }),
            json!({ "a": "1", "b": "2", "c": "é" })
        ]
    );
    let typed = json!({
        "format": "csv", "delimiter": "\t", "quotes": "none", "decimal_mark": ",", "header": false,
        "columns": ["sku", { "name": "price", "type": "number" }, { "name": "sold", "type": "boolean" }],
    });
    let found = records(typed, b"\"A\"\t12,50\t1\n5\t\tfalse\n").unwrap();
    assert_eq!(
        found,
        [
            json!({ "sku": "\"A\"", "price": 12.5, "sold": true }),
            json!({ "sku": "5", "price": null, "sold": false })
        ]
    );
}

#[test]
fn files_cut_short_or_broken_are_refused_with_line_and_field() {
    let csv = || json!({ "format": "csv", "delimiter": ";" });
    let number =
        || json!({ "format": "csv", "delimiter": ";", "columns": [{ "name": "b", "type": "number" }] });
    for (spec, bytes, says) in [
        (csv(), "a;b\r\n1;2\r\n3", "line 3: 1 fields where 2 are expected"),
        (csv(), "a;b\n1;\"two\nthree", "line 2, column 2: the text ends inside quotes"),
        (csv(), "a;b\n1;\"2\"3\n", "line 2, column 2: text stands after a closing quote"),
        (csv(), "a;b\n1;2\"3\n", "line 2, column 2: a quote stands inside"),
        (csv(), "a;a\n", "column 2: the header names it twice"),
        (csv(), "a;\n", "column 2: the header has no name"),
        (csv(), "", "the flow is empty"),
        (number(), "a;c\n1;2\n", "line 1: the header has no column \"b\""),
        (number(), "a;b\n1;2\n1;two\n", "line 3, field \"b\": not a number"),
        (
            number(),
            "a;b\n1;18446744073709551615\n1;18446744073709551616\n",
            "line 3, field \"b\": a number with more digits",
        ),
        (number(), "a;b\n1;2,5\n", "line 2, field \"b\": not a number"),
        (json!({ "format": "ndjson" }), "{\"a\":1}\n{\"a\":\n", "line 2: the JSON ends too early"),
        (json!({ "format": "ndjson" }), "{\"a\":1}\n[1]\n", "line 2: expected an object"),
        (json!({ "format": "json" }), "[{\"a\":1},\n{\"a\"", "line 2, column 4: the JSON ends too early"),
        (json!({ "format": "json" }), "[{\"a\":1}, 5]", "column 12: expected an object"),
        (json!({ "format": "json" }), "{\"a\":1}", "expected an array of objects"),
        (json!({ "format": "json" }), "[{\"a\":1,\"a\":2}]", "the same field twice"),
        (json!({ "format": "json" }), "[] x", "trailing characters"),
        (json!({ "format": "json", "at": "data.items" }), "{\"data\":{}}", "no field \"data.items\""),
    ] {
        let error = records(spec, bytes.as_bytes()).unwrap_err();
        assert!(error.contains(says), "{bytes:?}: {error}");
    }
    let error = records(csv(), b"a;b\n\xe9;1\n").unwrap_err();
    assert!(error.contains("line 2: bytes that are no text in UTF-8"), "{error}");
}

#[test]
fn raw_files_are_read_and_written_as_the_vendor_has_them() {
    let raw = || {
        json!({
            "format": "raw",
            "columns": ["Reference", { "name": "Prix", "type": "number" }, { "name": "Actif", "type": "boolean" }, "Le"],
        })
    };
    let items = json!({ "items": [
        { "Le": "2026-11-21T06:00:00Z", "Reference": "A\"1;é", "Prix": 12.5, "Actif": true, "More": [1] },
        { "Le": null, "Reference": "", "Prix": 3, "Actif": false },
    ]});
    let written =
        text(json!({ "format": "json", "at": "items" }), raw(), items.to_string().as_bytes()).unwrap();
    assert_eq!(
        written,
        "\"Reference\";\"Prix\";\"Actif\";\"Le\"\r\n\"A\"\"1;é\";12.5;true;\"2026-11-21T06:00:00Z\"\r\n\"\";3;false;\r\n"
    );
    // The header only informs: the order counts.
    let other = written.replacen("\"Reference\";\"Prix\"", "\"Price\";\"Article\"", 1);
    let found = records(raw(), other.as_bytes()).unwrap();
    assert_eq!(
        found[0],
        json!({ "Reference": "A\"1;é", "Prix": 12.5, "Actif": true, "Le": "2026-11-21T06:00:00Z" })
    );
    assert_eq!(found.len(), 2);
    let error = records(json!({ "format": "raw" }), b"").unwrap_err();
    assert!(error.starts_with("columns: name them"), "{error}");
}

#[test]
fn an_accounting_export_becomes_a_fec_of_18_columns() {
    let names = [
        "JournalCode",
        "JournalLib",
        "EcritureNum",
        "EcritureDate",
        "CompteNum",
        "CompteLib",
        "CompAuxNum",
        "CompAuxLib",
        "PieceRef",
        "PieceDate",
        "EcritureLib",
        "Debit",
        "Credit",
        "EcritureLet",
        "DateLet",
        "ValidDate",
        "Montantdevise",
        "Idevise",
    ];
    let columns: Vec<Value> = names
        .iter()
        .map(|name| match *name {
            "Debit" | "Credit" => json!({ "name": name, "value": format!("record.{name} | decimal(2)") }),
            "EcritureDate" | "PieceDate" | "ValidDate" => {
                json!({ "name": name, "value": format!("record.{name} | date") })
            }
            "JournalLib" => json!({ "name": name, "value": "'Journal des ventes'" }),
            "CompAuxNum" | "CompAuxLib" | "EcritureLet" | "DateLet" | "Montantdevise" => {
                json!({ "name": name, "value": "''" })
            }
            _ => json!(name),
        })
        .collect();
    let fec = json!({ "format": "csv", "delimiter": "\t", "quotes": "none", "columns": columns });
    let entry = json!([{
        "JournalCode": "VE", "EcritureNum": "000001", "EcritureDate": "2026-10-31", "CompteNum": "41100000",
        "CompteLib": "Clients", "PieceRef": "FA261000001", "PieceDate": "2026-10-31T00:00:00Z",
        "EcritureLib": "Facture L'Écume", "Debit": "1663.145", "Credit": 0, "ValidDate": "31/10/2026", "Idevise": "EUR",
    }]);
    let written = text(json!({ "format": "json" }), fec.clone(), entry.to_string().as_bytes()).unwrap();
    let lines: Vec<Vec<&str>> =
        written.split_terminator("\r\n").map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0], names);
    assert_eq!(
        lines[1],
        [
            "VE",
            "Journal des ventes",
            "000001",
            "20261031",
            "41100000",
            "Clients",
            "",
            "",
            "FA261000001",
            "20261031",
            "Facture L'Écume",
            "1663,15",
            "0,00",
            "",
            "",
            "20261031",
            "",
            "EUR"
        ]
    );
    let tab = entry.to_string().replace("Facture", "Fac\\tture");
    let error = text(json!({ "format": "json" }), fec, tab.as_bytes()).unwrap_err();
    assert!(error.starts_with("record 1, field \"EcritureLib\": holds the delimiter"), "{error}");
}

#[test]
fn records_go_between_all_formats_and_keep_the_order_of_their_fields() {
    let csv = b"z,a\r\n1,\"x, y\"\r\n2,\"\xc3\xa9\"\r\n";
    let from = || json!({ "format": "csv" });
    let ndjson = text(from(), json!({ "format": "ndjson" }), csv).unwrap();
    assert_eq!(ndjson, "{\"z\":\"1\",\"a\":\"x, y\"}\n{\"z\":\"2\",\"a\":\"é\"}\n");
    let json = text(json!({ "format": "ndjson" }), json!({ "format": "json" }), ndjson.as_bytes()).unwrap();
    assert_eq!(json, "[\n{\"z\":\"1\",\"a\":\"x, y\"},\n{\"z\":\"2\",\"a\":\"é\"}\n]\n");
    let back = text(json!({ "format": "json" }), json!({ "format": "csv" }), json.as_bytes()).unwrap();
    assert_eq!(back.as_bytes(), b"z,a\r\n1,\"x, y\"\r\n2,\xc3\xa9\r\n");
    let xml = convert(
        from(),
        json!({ "format": "xml", "root": "Articles", "record": "Article", "encoding": "iso-8859-15", "line_end": "crlf" }),
        csv,
    )
    .unwrap();
    assert_eq!(
        xml,
        b"<?xml version=\"1.0\" encoding=\"ISO-8859-15\"?>\r\n<Articles>\r\n<Article><z>1</z><a>x, y</a></Article>\r\n\
          <Article><z>2</z><a>\xe9</a></Article>\r\n</Articles>\r\n"
    );
    assert_eq!(text(from(), json!({ "format": "json" }), b"a\r\n").unwrap(), "[\n]\n");
    assert_eq!(
        text(from(), json!({ "format": "csv", "columns": ["a"], "bom": true }), b"a\n1\n").unwrap(),
        "\u{feff}a\r\n1\r\n"
    );
}

#[test]
fn what_a_format_or_an_encoding_cannot_hold_is_named_and_not_shown() {
    let from = || json!({ "format": "csv" });
    let latin = json!({ "format": "csv", "encoding": "windows-1252" });
    let error = convert(from(), latin, "n,m\n1,Secret 日\n".as_bytes()).unwrap_err();
    assert!(error.starts_with("line 2, field \"m\": windows-1252 has no character U+65E5"), "{error}");
    assert!(!error.contains("Secret"), "{error}");
    let stand_in = json!({ "format": "csv", "encoding": "windows-1252", "unmappable": "?" });
    assert_eq!(convert(from(), stand_in, "m\nà日\n".as_bytes()).unwrap(), b"m\r\n\xe0?\r\n");
    let nested = text(json!({ "format": "ndjson" }), from(), b"{\"a\":{\"b\":1}}\n").unwrap_err();
    assert!(nested.contains("field \"a\": is a list or an object"), "{nested}");
    let more = text(json!({ "format": "ndjson" }), from(), b"{\"a\":1}\n{\"a\":1,\"b\":2}\n").unwrap_err();
    assert!(more.contains("line 2: the field \"b\" is not among"), "{more}");
    let missing = text(from(), json!({ "format": "csv", "columns": ["b"] }), b"a\n1\n").unwrap_err();
    assert!(missing.contains("line 2: column \"b\": the record has no such field"), "{missing}");
    let name = text(from(), json!({ "format": "xml" }), b"a b\n1\n").unwrap_err();
    assert!(name.contains("cannot name an XML element"), "{name}");
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    for (spec, says) in [
        (json!({ "format": "json", "delimiter": ";" }), "delimiter: belongs to"),
        (json!({ "format": "csv", "delimiter": "\"" }), "delimiter: must be"),
        (json!({ "format": "csv", "root": "a" }), "root: belongs to"),
        (json!({ "format": "csv", "at": "a" }), "at: belongs to"),
        (json!({ "format": "xml", "root": "a b" }), "root: "),
        (json!({ "format": "csv", "columns": ["a", "a"] }), "stands there twice"),
        (json!({ "format": "csv", "columns": [{ "name": "a", "value": "record." }] }), "not an expression"),
        (json!({ "format": "csv", "encoding": "latin1" }), "ambiguous"),
        (json!({ "format": "csv", "encoding": "windows-1252", "bom": true }), "bom: "),
        (json!({ "format": "csv", "decimal_mark": "'" }), "decimal_mark"),
        (json!({ "format": "csv", "quotes": "none", "delimiter": ",", "decimal_mark": "," }), "decimal_mark"),
        (json!({ "format": "raw" }), "columns: name them"),
    ] {
        let error = layout(spec.clone()).check_write().unwrap_err();
        assert!(error.contains(says), "{spec}: {error}");
    }
    for wrong in [json!({ "format": "csv", "delimiters": ";" }), json!({ "format": "yaml" }), json!({})] {
        assert!(serde_json::from_value::<Layout>(wrong.clone()).is_err(), "{wrong}");
    }
    let column =
        json!({ "format": "csv", "columns": ["a", { "name": "b", "value": "record.a", "type": "text" }] });
    let again = serde_json::to_value(layout(column.clone())).unwrap();
    assert_eq!(again["columns"], json!(["a", { "name": "b", "value": "record.a", "type": "text" }]));
}

/// As many lines as are asked for, never all at once.
struct Lines(u64, Vec<u8>);

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.1.len() < buffer.len() && self.0 > 0 {
            self.0 -= 1;
            self.1.extend(format!("{};\"some text\";12,50\r\n", self.0).bytes());
        }
        let count = self.1.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.1.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

#[test]
fn a_large_flow_is_never_held_and_one_record_cannot_be_endless() {
    let spec =
        layout(json!({ "format": "csv", "delimiter": ";", "header": false, "columns": ["a", "b", "c"] }));
    let mut largest = 0;
    let count = read::records(&mut Lines(50_000, Vec::new()), &spec, &mut |_, record| {
        largest = largest.max(record.0.len());
        Ok(())
    });
    assert_eq!((count.unwrap().records, largest), (50_000, 3));
    let endless = |spec: Value, start: &str| {
        let mut bytes = start.as_bytes().to_vec();
        bytes.resize(3 * 1024 * 1024, b'x');
        records(spec, &bytes).unwrap_err()
    };
    assert!(endless(json!({ "format": "csv" }), "a\n\"").contains("longer than 1 MiB"));
    assert!(endless(json!({ "format": "ndjson" }), "{\"a\":\"").contains("longer than 1 MiB"));
    assert!(endless(json!({ "format": "json" }), "[{\"a\":\"").contains("longer than 1 MiB"));
}
