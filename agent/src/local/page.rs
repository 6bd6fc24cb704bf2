//! The status page for people.

use crate::status::{Link, Snapshot};
use std::fmt::Write as _;

/// Renders the page; every value is escaped.
pub fn render(status: &Snapshot) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, status);
    page
}

fn write(page: &mut String, status: &Snapshot) -> std::fmt::Result {
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <title>{name}</title><style>body{{font:16px system-ui;margin:2em;max-width:60em}}\
         td,th{{text-align:left;padding:.2em 1em .2em 0}}.bad{{color:#b00}}.good{{color:#070}}</style>\
         <h1>Passerelle agent {name}</h1><p>version {}, started {}</p>",
        escape(&status.version),
        status.started_at,
        name = escape(status.name.as_str()),
    )?;
    if let Some(who) = &status.identity {
        write!(
            page,
            "<p>tenant {}, site {}, agent {}</p>",
            escape(who.tenant.as_str()),
            escape(who.site.as_str()),
            escape(&who.agent)
        )?;
    }
    let (class, connection) = match &status.connection {
        Link::Connected { since, .. } => ("good", format!("connected since {since}")),
        Link::Connecting => ("bad", "connecting".to_owned()),
        Link::Starting { why } => ("bad", why.clone()),
        Link::Disconnected { why } => ("bad", format!("not connected: {why}")),
    };
    write!(page, "<p>hub {}: <b class={class}>{}</b></p>", escape(&status.hub), escape(&connection))?;
    for reason in &status.reasons {
        write!(page, "<p class=bad>not ready: {}</p>", escape(reason))?;
    }
    write!(page, "<p>configuration read at {}", status.configuration.at)?;
    if !status.configuration.needs_restart.is_empty() {
        let keys = status.configuration.needs_restart.join(", ");
        write!(page, "; changed, but in effect at the next start only: {}", escape(&keys))?;
    }
    if !status.configuration.refused.is_empty() {
        page.push_str(": <b class=bad>refused</b>; the one before goes on");
    }
    for finding in &status.configuration.refused {
        write!(page, "<p class=bad>{}", escape(finding))?;
    }
    write!(
        page,
        "<p>jobs held {}, running {}, not yet reported {}</p><h2>Resources</h2><table><tr><th>name<th>connector\
         <th>allowed<th>last probe",
        status.jobs_held, status.jobs_running, status.jobs_unreported
    )?;
    for (name, resource) in &status.resources {
        let probe = match &resource.probe {
            None => "not yet".to_owned(),
            Some(probe) => match &probe.problem {
                None => format!("ok at {}", probe.at),
                Some(problem) => format!("{problem} at {}", probe.at),
            },
        };
        write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}",
            escape(name.as_str()),
            escape(resource.connector.as_str()),
            escape(&resource.allowed()),
            escape(&probe)
        )?;
    }
    page.push_str("</table>");
    if !status.triggers.is_empty() {
        page.push_str("<h2>Triggers</h2>");
    }
    for trigger in &status.triggers {
        write!(page, "<pre>{}</pre>", escape(&trigger.sentence()))?;
    }
    for (name, paused) in &status.pauses {
        write!(page, "<p class=bad>{}</p>", escape(&paused.sentence(name)))?;
    }
    page.push_str(
        "<h2>Last jobs</h2><table><tr><th>at<th>job<th>attempt<th>resource<th>operation<th>outcome",
    );
    for job in &status.last_jobs {
        write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            job.at,
            job.job,
            job.attempt,
            escape(job.resource.as_str()),
            escape(job.operation.as_str()),
            escape(&job.outcome)
        )?;
    }
    page.push_str("</table></html>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
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

    #[test]
    fn what_others_wrote_is_escaped() {
        let name: Name = "triggers-only".parse().unwrap();
        let resource =
            ResourceStatus { connector: "file".parse().unwrap(), operations: Vec::new(), probe: None };
        let status = Status::new(std::collections::BTreeMap::from([(name.clone(), resource)]));
        status.set_link(Link::Disconnected { why: "<script>alert('x')</script>".to_owned() });
        status
            .reloaded(|reload| reload.refused = vec!["/config/agent.toml:1:1: <b>: unknown key".to_owned()]);
        let snapshot = status.snapshot(&"paris-1".parse().unwrap(), "https://hub/", Load::default(), vec![]);
        assert_eq!(snapshot.resources[&name].allowed(), "no operations allowed");
        let page = render(&snapshot);
        assert!(page.contains("no operations allowed"), "{page}");
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{page}");
        assert!(page.contains("agent.toml:1:1: &lt;b&gt;: unknown key"), "{page}");
    }
}
