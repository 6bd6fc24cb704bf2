//! The status page for people, in the language that their browser asks for.

use super::words::{ENGLISH, FRENCH, Language, Words};
use crate::status::{Link, Probe, Snapshot};
use std::fmt::{Result, Write as _};

const STYLE: &str = "body{font:16px/1.4 system-ui,sans-serif;margin:1.5em auto;padding:0 1em;max-width:60em;\
overflow-wrap:anywhere}h1,h2{line-height:1.2}.wide{overflow-x:auto}table{border-collapse:collapse}\
td,th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0;overflow-wrap:normal}td.long{min-width:12em;\
overflow-wrap:anywhere}pre{white-space:pre-wrap}.bad{color:#b00}.good{color:#070}\
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8bf}.bad{color:#f77}.good{color:#6d6}}";

/// Renders the page; every value is escaped.
pub fn render(status: &Snapshot, language: Language) -> String {
    let words = match language {
        Language::English => &ENGLISH,
        Language::French => &FRENCH,
    };
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, status, words);
    page
}

fn write(page: &mut String, status: &Snapshot, words: &Words) -> Result {
    let name = escape(status.name.as_str());
    write!(
        page,
        "<!doctype html><html lang={}><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <meta http-equiv=refresh content=5><title>{name}</title><style>{STYLE}</style>\
         <h1>{} {name}</h1><p><a href=\"?lang={}\" hreflang={2} lang={2}>{}</a><p>{} {}, {} {}",
        words.code,
        words.agent,
        words.other.0,
        words.other.1,
        words.version,
        escape(&status.version),
        words.started,
        status.started_at,
    )?;
    if let Some(who) = &status.identity {
        write!(
            page,
            "<p>{} {}, {} {}, agent {}",
            words.tenant,
            escape(who.tenant.as_str()),
            words.site,
            escape(who.site.as_str()),
            escape(&who.agent)
        )?;
    }
    connection(page, status, words)?;
    configuration(page, status, words)?;
    write!(
        page,
        "<p>{}: {} {}, {} {}, {} {}",
        words.jobs,
        status.jobs_held,
        words.held,
        status.jobs_running,
        words.running,
        status.jobs_unreported,
        words.unreported
    )?;
    resources(page, status, words)?;
    if !status.triggers.is_empty() {
        write!(page, "<h2>{}</h2>", words.triggers)?;
    }
    for trigger in &status.triggers {
        write!(page, "<pre>{}</pre>", escape(&trigger.sentence()))?;
    }
    for (name, paused) in &status.pauses {
        write!(page, "<p class=bad>{}", escape(&paused.sentence(name)))?;
    }
    last_jobs(page, status, words)?;
    page.push_str("</html>\n");
    Ok(())
}

fn connection(page: &mut String, status: &Snapshot, words: &Words) -> Result {
    let (class, connection) = match &status.connection {
        Link::Connected { since, .. } => ("good", format!("{} {since}", words.connected)),
        Link::Connecting => ("bad", words.connecting.to_owned()),
        Link::Starting { why } => ("bad", why.clone()),
        Link::Disconnected { why } => ("bad", format!("{}: {why}", words.not_connected)),
    };
    write!(page, "<p>hub {}: <b class={class}>{}</b>", escape(&status.hub), escape(&connection))?;
    for reason in &status.reasons {
        write!(page, "<p class=bad>{}: {}", words.not_ready, escape(reason))?;
    }
    if let Some(clock) = status.clock.as_ref().filter(|_| status.ready) {
        write!(page, "<p class=bad>{}", escape(clock))?;
    }
    Ok(())
}

fn configuration(page: &mut String, status: &Snapshot, words: &Words) -> Result {
    let configuration = &status.configuration;
    write!(page, "<p>{} {}", words.configuration, configuration.at)?;
    if !configuration.needs_restart.is_empty() {
        write!(page, "; {}: {}", words.needs_restart, escape(&configuration.needs_restart.join(", ")))?;
    }
    if !configuration.refused.is_empty() {
        write!(page, ": <b class=bad>{}</b>; {}", words.refused, words.goes_on)?;
    }
    for finding in &configuration.refused {
        write!(page, "<p class=bad>{}", escape(finding))?;
    }
    Ok(())
}

fn resources(page: &mut String, status: &Snapshot, words: &Words) -> Result {
    write!(page, "<h2>{}</h2>", words.resources)?;
    table(page, &words.resource_columns)?;
    for (name, resource) in &status.resources {
        let (class, probe) = match &resource.probe {
            None => ("", words.not_yet.to_owned()),
            Some(Probe { at, problem: None }) => ("good", format!("{} {at}", words.reachable)),
            Some(Probe { at, problem: Some(problem) }) => ("bad", format!("{problem} ({at})")),
        };
        let allowed = if resource.operations.is_empty() {
            words.nothing_allowed.to_owned()
        } else {
            resource.allowed()
        };
        write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td class=\"long {class}\">{}",
            escape(name.as_str()),
            escape(resource.connector.as_str()),
            escape(&allowed),
            escape(&probe)
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn last_jobs(page: &mut String, status: &Snapshot, words: &Words) -> Result {
    write!(page, "<h2>{}</h2>", words.last_jobs)?;
    table(page, &words.job_columns)?;
    for job in &status.last_jobs {
        let class = if job.outcome == "succeeded" { "good" } else { "bad" };
        write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td class={class}>{}",
            job.at,
            job.job,
            job.attempt,
            escape(job.resource.as_str()),
            escape(job.operation.as_str()),
            escape(&job.outcome)
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn table(page: &mut String, columns: &[&str]) -> Result {
    page.push_str("<div class=wide><table><tr>");
    columns.iter().try_for_each(|column| write!(page, "<th scope=col>{column}"))
}

/// Text as it is: not as markup, and not as an order to turn round what stands after it (Unicode UAX 9).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.push(char::REPLACEMENT_CHARACTER);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::Load,
        status::{ResourceStatus, Status},
    };
    use passerelle_protocol::Name;

    fn snapshot(why: &str) -> Snapshot {
        let name: Name = "triggers-only".parse().unwrap();
        let resource =
            ResourceStatus { connector: "file".parse().unwrap(), operations: Vec::new(), probe: None };
        let status = Status::new(std::collections::BTreeMap::from([(name, resource)]));
        status.set_link(Link::Disconnected { why: why.to_owned() });
        status
            .reloaded(|reload| reload.refused = vec!["/config/agent.toml:1:1: <b>: unknown key".to_owned()]);
        status.snapshot(&"paris-1".parse().unwrap(), "https://hub/", Load::default(), vec![])
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let page = render(&snapshot("<script>alert('x')</script> \u{202e}txt.exe"), Language::English);
        assert!(page.contains("no operations allowed"), "{page}");
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{page}");
        assert!(page.contains("agent.toml:1:1: &lt;b&gt;: unknown key"), "{page}");
        assert!(page.contains("\u{fffd}txt.exe") && !page.contains('\u{202e}'), "{page}");
    }

    #[test]
    fn it_speaks_french_too() {
        let page = render(&snapshot("gone"), Language::French);
        assert!(page.contains("<html lang=fr>") && page.contains("non connecté\u{a0}: gone"), "{page}");
        assert!(
            page.contains("aucune opération permise") && page.contains("<h2>Derniers jobs</h2>"),
            "{page}"
        );
        assert!(page.contains("href=\"?lang=en\""), "{page}");
    }
}
