//! What templates give, refuse and cost.

use super::{
    check,
    output::{Output, Sink},
    render,
};
use crate::mediations::formats::{encoding, layout::LineEnd};
use minijinja::Value;
use serde_json::{Value as Json, json};
use std::io;

fn output() -> Output {
    Output { charset: encoding::named(None).unwrap(), bom: false, unmappable: None, line_end: None }
}

/// In this process, with nothing between template and file.
fn rendered(source: &str, names: &Json, output: Output) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut sink = Sink::new(&mut out, output).unwrap();
    let mut told = None;
    let done = render(source, Value::from(minijinja::value::Serde(names)), &mut |text| {
        sink.put(text).map_err(|error| {
            told = Some(error.to_string());
            io::Error::other("refused")
        })
    });
    sink.finish().unwrap();
    told.map_or(done, Err).map(|()| out)
}

fn text(source: &str, context: &Json) -> Result<String, String> {
    rendered(source, context, output()).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn helpers_write_what_french_exports_want() {
    let context = json!({ "v": "1663.145", "n": null, "at": "2026-10-31T23:30:00Z", "day": "2026-10-31",
        "lines": [{ "Debit": "0.10" }, { "Debit": "0,20" }, { "Debit": "" }], "name": "L'Écume <1>; \"x\"" });
    for (source, expected) in [
        ("{{ v | decimal(2) }}", "1663,15"),
        ("{{ true }}|{{ true | xml }}|{{ false | csv }}|{{ true | fixed(5) }}|", "true|true|false|true |"),
        ("{{ [1] + ['a'] }}|{{ ['a'] * 2 }}|{{ [none, true] | xml }}", r#"[1,"a"]|["a","a"]|[null,true]"#),
        ("{{ v | decimal }}|{{ n | decimal }}|{{ '' | decimal(0) }}", "1663,15|0,00|0"),
        ("{{ 1234567.5 | decimal(2, mark='.', group=' ') }}", "1 234 567.50"),
        ("{{ at | date }} {{ at | date('%d/%m/%Y', zone='Europe/Paris') }}", "20261031 01/11/2026"),
        (
            "{{ day | date('%d/%m/%y') }}{{ n | date }}{{ '20261031' | date('%Y-%m-%d') }}",
            "31/10/262026-10-31",
        ),
        (
            "{{ 'ab' | fixed(4) }}|{{ 7 | fixed(4, align='right', fill='0') }}|{{ 'abcdef' | fixed(3, cut=true) }}",
            "ab  |0007|abc",
        ),
        (
            "{{ name | csv }}|{{ 'a' | csv }}|{{ 'a,b' | csv(delimiter=',') }}",
            "\"L'Écume <1>; \"\"x\"\"\"|a|\"a,b\"",
        ),
        ("<N>{{ name | xml }}</N>", "<N>L&#39;Écume &lt;1&gt;; &quot;x&quot;</N>"),
        (
            "{{ lines | tojson }} {{ name | tojson }}",
            "[{\"Debit\":\"0.10\"},{\"Debit\":\"0,20\"},{\"Debit\":\"\"}] \"L'Écume <1>; \\\"x\\\"\"",
        ),
        ("{{ lines | total('Debit') | decimal(2) }}", "0,30"),
        (
            "{% for line in lines %}\n  {% if line.Debit %}\n{{ line.Debit }}\n  {% endif %}\n{% endfor %}\nend\n",
            "0.10\n0,20\nend\n",
        ),
    ] {
        assert_eq!(text(source, &context).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn what_does_not_fit_is_said_with_its_line_and_without_its_value() {
    let context = json!({ "v": "Secret", "l": [1] });
    for (source, says) in [
        ("\n{{ nope }}", "(line 2 of the template)"),
        ("{{ v.nope }}", "undefined"),
        ("{{ v | decimal }}", "decimal: not a number"),
        ("{{ v | date }}", "date: not a date"),
        ("{{ '2026-10-31' | date('%H:%M', zone='Mars') }}", "zone is not known"),
        ("{{ v | fixed(3) }}", "6 characters where 3 fit"),
        ("{{ v | fixed(99999999) }}", "at most"),
        ("{{ l | total('x') }}", "total"),
        ("{{ v | nope }}", "nope"),
        ("{% include 'x' %}", "statement"),
        ("{{ v | decimal(2, marks='.') }}", "marks"),
    ] {
        let error = text(source, &context).unwrap_err();
        assert!(error.contains(says) && !error.contains("Secret"), "{source}: {error}");
    }
    assert!(check(&"x".repeat(300_000)).unwrap_err().contains("longer than"));
}

#[test]
fn no_template_takes_long_or_makes_much() {
    let context = json!({ "s": "x".repeat(1000) });
    for source in [
        "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
        "{% for i in range(40) %}{% for j in range(1000) %}{{ s * 100 }}{% endfor %}{% endfor %}",
        "{% for i in range(9000) %}{% for j in range(9000) %}{{ s }}{% endfor %}{% endfor %}",
    ] {
        let error = text(source, &context).unwrap_err();
        assert!(error.contains("too many steps") || error.contains("more than 64 MiB"), "{source}: {error}");
    }
}

#[test]
fn output_is_encoded_and_its_line_ends_are_those_asked_for() {
    let latin = Output {
        charset: encoding::named(Some("windows-1252")).unwrap(),
        line_end: Some(LineEnd::Crlf),
        ..output()
    };
    let context = json!({ "v": "é€\r\nb" });
    assert_eq!(rendered("{{ v }}\nc\r\n", &context, latin).unwrap(), b"\xe9\x80\r\nb\r\nc\r\n");
    assert_eq!(rendered("a\r{{ '\\n' }}b", &context, latin).unwrap(), b"a\r\nb");
    let error = rendered("a\n日", &context, latin).unwrap_err();
    assert!(error.starts_with("line 2 of the output: windows-1252 has no character"), "{error}");
    let with_bom = Output { bom: true, line_end: Some(LineEnd::Lf), ..output() };
    assert_eq!(rendered("a\r\n", &context, with_bom).unwrap(), b"\xef\xbb\xbfa\n");
}

/// As deep as may be: none of it ends the program, on the small stack that a test has.
#[test]
fn the_deepest_templates_are_taken_or_refused() {
    let context = json!({ "a": 1, "l": [1] });
    let nested = |count: usize| format!("{}x{}", "{% if a %}".repeat(count), "{% endif %}".repeat(count));
    let literals = |count: usize| {
        format!("{{% set x = [] %}}{}{{{{ x|tojson|length }}}}{{{{ x }}}}", "{% set x = [x] %}".repeat(count))
    };
    for good in [
        format!("{{{{ 1{} }}}}", "+1".repeat(990)),
        nested(100),
        literals(490),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif 0 %}".repeat(190)),
        format!("{{% set x = l %}}{}{{{{ x|tojson|length }}}}", "{% set x = x|batch(1)|list %}".repeat(400)),
    ] {
        check(&good).unwrap();
        text(&good, &context).unwrap_or_else(|error| panic!("{}: {error}", &good[..60]));
    }
    for bad in [
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(30_000)),
        nested(8000),
        literals(8000),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif 0 %}".repeat(8000)),
        "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}"
            .to_owned(),
        "{{ debug() }}".to_owned(),
    ] {
        assert!(text(&bad, &context).is_err(), "{}", &bad[..13]);
    }
}
