//! `sites` and `agents`.

use crate::{
    Failure,
    args::{AgentCommand, Agents, Connection, Sites},
    client::Client,
    out::Out,
    render,
};
use serde_json::{Value, json};

pub(crate) async fn sites(command: &Sites, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let items = all(&client, "v1/sites", &[]).await?;
    if command.connection.json {
        out.json(&json!({ "items": items }));
        return Ok(());
    }
    let rows = items
        .iter()
        .map(|site| ["name", "agents", "agents_online", "jobs_queued"].map(|key| cell(site, key)).to_vec());
    out.text(&render::table(&["SITE", "AGENTS", "ONLINE", "QUEUED"], rows.collect(), out.colour));
    Ok(())
}

pub(crate) async fn agents(command: &Agents, out: &Out) -> Result<(), Failure> {
    if let Some(AgentCommand::Revoke { id, connection }) = &command.command {
        return revoke(connection, id, out).await;
    }
    let client = Client::new(&command.connection)?;
    let query: Vec<(&str, String)> = command.site.iter().map(|site| ("site", site.clone())).collect();
    let items = all(&client, "v1/agents", &query).await?;
    if command.connection.json {
        out.json(&json!({ "items": items }));
        return Ok(());
    }
    let rows = items.iter().map(|agent| {
        let keys = ["id", "name", "site", "application", "online", "version", "last_seen_at", "jobs_running"];
        keys.map(|key| cell(agent, key)).to_vec()
    });
    let head = ["ID", "NAME", "SITE", "APPLICATION", "ONLINE", "VERSION", "LAST SEEN", "JOBS"];
    out.text(&render::table(&head, rows.collect(), out.colour));
    Ok(())
}

async fn revoke(connection: &Connection, id: &str, out: &Out) -> Result<(), Failure> {
    let agent = Client::new(connection)?.revoke_agent(id).await?;
    if connection.json {
        out.json(&agent);
    } else {
        out.text(&format!(
            "revoked agent {} ({} at {})\n",
            cell(&agent, "id"),
            cell(&agent, "name"),
            cell(&agent, "site")
        ));
    }
    Ok(())
}

/// All pages of a list.
pub(crate) async fn all(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page = client.get(path, &query).await?;
        if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
            items.extend(found);
        }
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(items),
        }
    }
}

fn cell(item: &Value, key: &str) -> String {
    match item.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
