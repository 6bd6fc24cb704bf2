//! What definitions say of steps: read, stored and read again; and what is wrong with them, at its place.

use crate::mediations::{
    Definition,
    definition::{file, templates::Text},
    template,
};
use passerelle_config::Finding;
use std::path::Path;

/// Every definition that a page shows.
fn shown(page: &str) -> Vec<&str> {
    page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Also of templates, which a hub compiles in another process.
fn findings(text: &str) -> Vec<String> {
    match file::read(Path::new("m.toml"), text) {
        Ok(written) => {
            let texts = written.iter().flat_map(|one| &one.texts);
            let of = |text: &Text| {
                let place = text.place.clone();
                let each = template::findings(&text.source).into_iter();
                each.map(move |message| Finding { message, ..place.clone() }.to_string())
            };
            texts.flat_map(of).collect()
        }
        Err(diagnostics) => diagnostics.findings().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn what_the_pages_show_can_be_applied_and_stays_the_same_when_stored() {
    let head = "[[mediation]]\nname = \"shown\"\ntrigger = { kind = \"manual\" }\n";
    let whole = shown(include_str!("../../../../docs/mediations.md")).into_iter().map(str::to_owned);
    let parts = shown(include_str!("../../../../docs/mediations/steps.md")).into_iter();
    let all: Vec<String> = whole.chain(parts.map(|part| format!("{head}{part}"))).collect();
    assert!(all.len() >= 6);
    for text in all {
        let written = file::read(Path::new("m.toml"), &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for one in written {
            let stored = one.definition.to_json();
            let again = Definition::of_json(&stored).unwrap_or_else(|e| panic!("{e}\n{stored:#}"));
            assert_eq!(again.definition, one.definition, "{stored:#}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_step_is_told_at_its_place() {
    let step = |body: &str| {
        format!(
            "[[mediation]]\nname = \"a\"\ntrigger = {{ kind = \"manual\" }}\n[[mediation.steps]]\nname = \"s\"\n{body}\n"
        )
    };
    let csv = "from = { format = \"csv\" }";
    for (body, says) in [
        (
            "kind = \"convert\"\nfrom = { format = \"csv\", root = \"x\" }\nto = { format = \"json\" }",
            "m.toml:7:33: mediation[1].steps[1].from.root: belongs to the format xml",
        ),
        (
            &format!("kind = \"convert\"\n{csv}\nto = {{ format = \"raw\" }}"),
            "m.toml:8:6: mediation[1].steps[1].to.columns: name them",
        ),
        (
            &format!("kind = \"convert\"\n{csv}\nto = {{ format = \"csv\", encoding = \"latin1\" }}"),
            "to.encoding: \"latin1\" is ambiguous",
        ),
        (
            &format!("kind = \"filter\"\n{csv}\nwhen = \"record.a ==\""),
            "m.toml:8:8: mediation[1].steps[1].when: not an expression: column 12",
        ),
        (
            &format!("kind = \"filter\"\n{csv}\nwhen = \"item.a == 1\""),
            "steps[1].when: \"item\" is not known here",
        ),
        (
            "kind = \"render\"\ntemplate = \"{% if %}\"",
            "m.toml:7:12: mediation[1].steps[1].template: not a template",
        ),
        (
            "kind = \"render\"\ntemplate = \"a\"\nencoding = \"windows-1252\"\nbom = true",
            "steps[1].bom: windows-1252 has none",
        ),
        (
            "kind = \"render\"\ntemplate = \"{{ records }}{{ run.guid | uper }}\"\nflow = \"{{ triger.key }}\"",
            "m.toml:7:12: mediation[1].steps[1].template: \"records\" is not known here; a template sees run, trigger",
        ),
        ("kind = \"render\"\ntemplate = \"{{ run.guid | uper }}\"", "template: there is no filter \"uper\""),
        (
            "kind = \"render\"\ntemplate = \"a\"\nflow = \"{{ triger.key }}\"",
            "m.toml:8:8: mediation[1].steps[1].flow: \"triger\"",
        ),
        (
            "kind = \"job\"\nsite = \"a\"\nresource = \"b\"\noperation = \"c\"\nparams = { path = [\"{{ item }}\"] }\nwatermarks = { a = \"{{ result is od }}\" }",
            "steps[1].params.path[1]: \"item\" is not known here",
        ),
        (
            "kind = \"job\"\nsite = \"a\"\nresource = \"b\"\noperation = \"c\"\nwatermarks = { a = \"{{ result is od }}\" }",
            "steps[1].watermarks.a: there is no test \"od\"",
        ),
        (
            &format!(
                "kind = \"convert\"\n{csv}\nto = {{ format = \"csv\", columns = [\"b\", {{ name = \"a\", value = \"record.a|decimals(2)\" }}] }}"
            ),
            "steps[1].to.columns[2].value: there is no filter \"decimals\"",
        ),
        (
            &format!(
                "kind = \"convert\"\n{csv}\nto = {{ format = \"csv\", columns = [{{ name = \"a\", value = \"nope\" }}] }}"
            ),
            "columns[1].value: \"nope\" is not known here; write record.nope",
        ),
        (
            &format!("kind = \"filter\"\n{csv}\nwhen = \"record.a.matches('(')\""),
            "m.toml:8:8: mediation[1].steps[1].when: matches(): not a pattern",
        ),
        (
            &format!("kind = \"filter\"\n{csv}\nwhen = \"{}\"", ["record.a.matches('x')"; 9].join(" || ")),
            "m.toml:8:8: mediation[1].steps[1].when: at most 8 patterns in one expression, found 9",
        ),
        ("kind = \"for_each\"\nparallel = 99", "steps[1].parallel: must be 1 to 32"),
        ("kind = \"for_each\"", "steps[1].job: missing"),
        (
            "kind = \"for_each\"\nwebhook = { subscription = \"0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f\" }",
            "webhook.event: missing",
        ),
        ("kind = \"webhook\"\nsubscription = \"x\"", "m.toml:7:16: mediation[1].steps[1].subscription"),
        (
            "kind = \"webhook\"\nsubscription = \"0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f\"\ndata = { a = \"1\" }",
            "steps[1].data: only with an event",
        ),
        (
            "kind = \"webhook\"\nsubscription = \"0193a5c2-5c1e-7d0a-9d2f-0a1b2c3d4e5f\"\nsecret = \"x\"",
            "secret",
        ),
    ] {
        let found = findings(&step(body));
        assert!(found.iter().any(|finding| finding.contains(says)), "{body}\n{found:#?}");
    }
}

#[test]
fn what_was_applied_by_another_version_is_still_read() {
    let when = ["record.a.matches('(')"; 9].join(" || ");
    let step = serde_json::json!({"name": "s", "kind": "filter", "from": {"format": "csv"}, "when": when, "flow": "{{ nope }}"});
    let body = serde_json::json!({"name": "a", "trigger": {"kind": "manual"}, "steps": [step]});
    let refused = Definition::of_json(&body).unwrap_err().to_string();
    assert!(refused.contains("at most 8 patterns"), "{refused}");
    let stored = Definition::of_stored(&body).unwrap();
    assert!(stored.texts.is_empty() && stored.definition.steps.len() == 1);
}
