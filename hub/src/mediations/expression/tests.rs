//! What expressions give, refuse and cost.

use super::{Expression, MAX_SOURCE};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn given() -> Value {
    json!({
        "EventKind": "CommandeValidee",
        "Data": {
            "CommandeNumero": "CMD-2026-000042", "CommandeMontantTotal": 129.9, "Whole": 129, "Text": "129,90",
            "PointLivraisonGuid": null, "Lignes": [{ "Sku": "A", "Qte": 2 }, { "Sku": "B", "Qte": 0 }],
            "At": "2026-10-25T00:30:00Z",
        },
    })
}

fn value(source: &str) -> Result<Value, String> {
    let event = given();
    Expression::parse(source).and_then(|e| e.evaluate(&[("event", &event)])).map_err(|e| e.to_string())
}

#[test]
fn conditions_over_an_event_give_what_cel_gives() {
    for (source, expected) in [
        ("event.Data.CommandeMontantTotal > 100", json!(true)),
        ("event.Data.Whole > 100 && event.Data.Whole == 129.0", json!(true)),
        ("double(event.Data.Text) >= 129.9", json!(true)),
        ("event.EventKind in ['CommandeValidee', \"X\"]", json!(true)),
        ("'Data' in event && !('Nope' in event)", json!(true)),
        ("has(event.Data.Nope)", json!(false)),
        ("has(event.Data.PointLivraisonGuid) && event.Data.PointLivraisonGuid == null", json!(true)),
        ("event.Data.Lignes.exists(l, l.Qte == 0)", json!(true)),
        ("event.Data.Lignes.all(l, l.Qte > 0)", json!(false)),
        ("event.Data.Lignes.exists_one(l, l.Sku == 'A')", json!(true)),
        ("event.Data.Lignes.map(l, l.Sku)", json!(["A", "B"])),
        ("event.Data.Lignes.map(l, l.Qte > 0, l.Sku)", json!(["A"])),
        ("event.Data.Lignes.filter(l, l.Qte > 0).size()", json!(1)),
        ("event.Data.Lignes[1].Sku + '-' + event.Data['Lignes'][0].Sku", json!("B-A")),
        ("event.Data.CommandeNumero.matches(r'^CMD-\\d{4}-\\d+$')", json!(true)),
        ("event.Data.CommandeNumero.startsWith('CMD') ? 'yes' : 'no'", json!("yes")),
        ("event.Data.CommandeNumero.lowerAscii().endsWith('42') && ' a '.trim() == 'a'", json!(true)),
        ("timestamp(event.Data.At) < timestamp('2026-10-25T02:30:00+01:00')", json!(true)),
        ("timestamp(event.Data.At) + duration('1h') == timestamp('2026-10-25T01:30:00Z')", json!(true)),
        (
            "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') >= duration('24h')",
            json!(true),
        ),
        ("1 + 2 * 3 - -4 / 2", json!(9)),
        ("7 / 2 == 3 && 7 % 4 == 3 && 7 / 2.0 == 3.5", json!(true)),
        ("size('é€') == 2 && string(5) + 'x' == '5x' && int('12') == 12", json!(true)),
        ("{'a': [1, 2]}.a[1]", json!(2)),
        ("[1, 2] == [1.0, 2.0] && [1] + [2] == [1, 2]", json!(true)),
        ("event.Nope > 1 || true", json!(true)),
        ("false && event.Nope > 1", json!(false)),
        ("'it\\'s \\u00e9' == \"it's é\"", json!(true)),
        ("[1, 2].map(x, [x].map(y, y + x))", json!([[2], [4]])),
    ] {
        assert_eq!(value(source), Ok(expected), "{source}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_column() {
    let deep = format!("{}1{}", "(".repeat(60), ")".repeat(60));
    let signs = format!("{}true", "!".repeat(60));
    let fields = format!("a{}", ".b".repeat(60));
    let sums = "1+".repeat(100) + "1";
    let long = "a".repeat(MAX_SOURCE + 1);
    for (source, says) in [
        ("", "ends too early"),
        ("1 +", "column 4: the expression ends too early"),
        ("a = 1", "column 3: equality is written =="),
        ("a == 1 b", "column 8: the expression goes on"),
        ("'open", "column 1: the text has no closing quote"),
        ("a & b", "column 3: a sign"),
        ("exec('x')", "exec() is not known"),
        ("a.b.exec()", ".exec() is not known"),
        ("a.matches(b)", "a pattern that is written there"),
        ("has(a)", "takes a field"),
        ("'\\d'", "escape"),
        ("if", "word of the language"),
        ("12abc", "not a number"),
        ("a.all(x)", "expected ,"),
        (deep.as_str(), "stand in each other"),
        (signs.as_str(), "stand in each other"),
        (fields.as_str(), "stand in each other"),
        (sums.as_str(), "stand in each other"),
        (long.as_str(), "longer than"),
    ] {
        let error = Expression::parse(source).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{source}: {error}");
    }
    let many = vec!["a == 1"; 150].join(" || ");
    assert!(Expression::parse(&many).is_ok(), "alternatives do not nest");
}

#[test]
fn what_cannot_be_evaluated_says_why_and_never_what_a_value_holds() {
    for (source, says) in [
        ("event.Data.Nope", "there is no field \"Nope\""),
        ("other", "\"other\" is not known here"),
        ("event.Data.CommandeNumero > 5", "a text cannot be compared with a number"),
        ("event.Data.CommandeNumero + 5", "do not go together"),
        ("event.Data.Lignes[2]", "nothing at this index"),
        ("event.Data.Lignes[-1]", "nothing at this index"),
        ("1 / 0", "no whole number"),
        ("1.0 / 0", "no number"),
        ("9223372036854775807 + 1", "64 bits"),
        ("timestamp(event.Data.CommandeNumero)", "timestamp() takes"),
        ("!event.Data.CommandeNumero", "neither true nor false"),
        ("event.Data.CommandeNumero.all(x, true)", "has no items"),
    ] {
        let error = value(source).unwrap_err();
        assert!(error.contains(says), "{source}: {error}");
        assert!(!error.contains("CMD-2026"), "{error}");
    }
    let event = given();
    let text = Expression::parse("event.EventKind").unwrap();
    assert!(text.holds(&[("event", &event)]).unwrap_err().message.contains("a text, not true or false"));
}

#[test]
fn patterns_are_told_and_compiled_when_they_are_asked() {
    let expression =
        Expression::parse(r"a.matches('(') || a.matches(r'^(\w{500}){500}') || a.matches('x')").unwrap();
    let found: Vec<_> = expression.patterns().map(|text| super::pattern(text).is_ok()).collect();
    assert_eq!(found, [false, false, true]);
    let (wrong, right) = (serde_json::json!("y"), serde_json::json!("x"));
    let error = expression.evaluate(&[("a", &wrong)]).unwrap_err().to_string();
    assert!(error.contains("not a pattern"), "{error}");
    assert_eq!(expression.evaluate(&[("a", &right)]).unwrap(), serde_json::json!(true));
}

#[test]
fn no_expression_takes_long_or_makes_much() {
    let list = json!((0..2000).collect::<Vec<_>>());
    let long = json!("x".repeat(100_000));
    let started = Instant::now();
    for source in [
        "l.map(a, l.map(b, l.map(c, a + b + c)))",
        "l.all(a, l.all(b, a == a))",
        "l.map(a, l + l)",
        "l.map(a, s + s)",
        "l.map(a, l)",
        "l.map(a, s.contains('y'))",
        "l.filter(a, s.matches(r'(x+)+y'))",
        "l.exists(a, l.exists(b, s < s))",
        "l.exists(a, l.exists(b, 'x'.contains(s)))",
        "l.exists(a, l == [a])&& false || l.exists(a, l.map(x, l) == l)",
    ] {
        let expression = Expression::parse(source).unwrap();
        let result = expression.evaluate(&[("l", &list), ("s", &long)]);
        let error = result.err().map(|error| error.message).unwrap_or_default();
        assert!(error.contains("too many steps"), "{source}: {error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn names_are_known_before_and_it_travels_as_text() {
    let expression = Expression::parse("a.b == 1 && l.exists(x, x == y)").unwrap();
    assert_eq!(expression.names().iter().map(String::as_str).collect::<Vec<_>>(), ["a", "l", "y"]);
    assert_eq!(expression.knows_only(&["a", "l"]).unwrap_err(), "\"y\" is not known here; there is a, l");
    let text = serde_json::to_string(&expression).unwrap();
    assert_eq!(serde_json::from_str::<Expression>(&text).unwrap(), expression);
    let error = serde_json::from_str::<Expression>("\"a ==\"").unwrap_err().to_string();
    assert!(error.contains("not an expression: column 5"), "{error}");
}
