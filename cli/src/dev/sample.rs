//! The sample jobs, and the proof from the targets' side that they arrived.

use super::{
    app::App,
    crm::Crm,
    folder::{ACCOUNTING, CRM, Folder, ORDERS},
};
use crate::{
    Failure,
    client::Client,
    jobs,
    render::{self, Job},
};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// An accounting export in the legal FEC format.
const EXPORT: &[u8] = include_bytes!("../../samples/123456789FEC20261031.txt");
const EXPORT_PATH: &str = "2026/10/123456789FEC20261031.txt";
/// The event "order validated".
const EVENT: &[u8] = include_bytes!("../../samples/commande-validee.json");
const EVENT_PATH: &str = "orders/CMD-2026-000042/validated";

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// What the samples run against.
pub(super) struct Context<'a> {
    pub(super) client: &'a Client,
    pub(super) folder: &'a Folder,
    pub(super) app: &'a App,
    pub(super) crm: &'a Crm,
    pub(super) site: &'a str,
}

/// A sample that arrived whole.
pub(crate) struct Delivery {
    pub(super) title: &'static str,
    pub(super) state: String,
    pub(super) job: String,
    pub(super) place: String,
    pub(super) size: usize,
    pub(super) sha256: String,
    pub(super) submitted_at: String,
    pub(super) finished_at: String,
}

/// Submits the samples, waits for them, and looks at what arrived.
///
/// # Errors
/// A job failure if one did not succeed, or did not arrive as it was sent.
pub(super) async fn deliver(context: &Context<'_>) -> Result<Vec<Delivery>, Failure> {
    let file = context.folder.share().join(EXPORT_PATH);
    // What an earlier run left in a kept folder must not pass for what this one delivers.
    if let Err(e) = fs::remove_file(&file)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(Failure::usage(format!("cannot remove {}: {e}", file.display())));
    }
    let Context { client, site, .. } = *context;
    let export = export(client, site, &context.folder.share()).await?;
    let arrived = |key: &str| {
        let mut received = context.app.received().into_iter();
        received.find(|notification| notification.key == key).map(|notification| notification.body.into())
    };
    let event = notification(client, site, &context.app.url(), arrived).await?;
    Ok(vec![export, event, contact(context).await?])
}

/// The accounting export: what the file server has below `share` is what was sent.
pub(crate) async fn export(client: &Client, site: &str, share: &Path) -> Result<Delivery, Failure> {
    let export = json!({
        "site": site,
        "resource": ACCOUNTING,
        "operation": "drop",
        "params": { "path": EXPORT_PATH, "create_dirs": true, "on_conflict": "replace" },
        "payload": payload(EXPORT, "text/plain; charset=utf-8"),
    });
    let (job, value) = finish(client, "the accounting export", &export).await?;
    let file = share.join(EXPORT_PATH);
    let arrived = fs::read(&file)
        .map_err(|e| Failure::job(format!("the accounting export is not at {}: {e}", file.display())))?;
    proven("Accounting export", file.display().to_string(), EXPORT, &arrived, &job, &value)
}

/// The order-validated notification: what the application got under the job's id is what was sent.
pub(crate) async fn notification(
    client: &Client,
    site: &str,
    application: &str,
    arrived: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Delivery, Failure> {
    let event = json!({
        "site": site,
        "resource": ORDERS,
        "operation": "notify",
        "params": { "path": EVENT_PATH },
        "payload": payload(EVENT, "application/json"),
    });
    let (job, value) = finish(client, "the order-validated notification", &event).await?;
    let arrived =
        arrived(&job.id).ok_or_else(|| Failure::job("the in-house application was not told of the order"))?;
    let place = format!("POST {application}{EVENT_PATH}");
    proven("Order-validated notification", place, EVENT, &arrived, &job, &value)
}

/// A customer who is to be in the CRM.
async fn contact(context: &Context<'_>) -> Result<Delivery, Failure> {
    let guid = "7a3f6c1e-5a0d-4f0e-9b8c-2f1d3e4a5b6c";
    let fields =
        json!({ "last_name": "Durand", "first_name": "Camille", "email": "camille.durand@example.com" });
    let upsert = json!({
        "site": context.site,
        "resource": CRM,
        "operation": "upsert",
        "params": { "entity": "contact", "key": { "external_id": guid }, "fields": fields },
    });
    let (job, value) = finish(context.client, "the customer's contact", &upsert).await?;
    let (place, found) =
        context.crm.contact(guid).ok_or_else(|| Failure::job("the sample CRM has no such contact"))?;
    // There each field has its own name.
    let arrived =
        json!({ "last_name": found["nom"], "first_name": found["prenom"], "email": found["email"] });
    let (sent, arrived) = (fields.to_string(), arrived.to_string());
    proven("Customer in the CRM", place, sent.as_bytes(), arrived.as_bytes(), &job, &value)
}

fn payload(content: &[u8], media_type: &str) -> Value {
    let (key, value) = crate::submission::inline(content.to_vec());
    json!({ key: value, "media_type": media_type })
}

async fn finish(client: &Client, what: &str, body: &Value) -> Result<(Job, Value), Failure> {
    let end = Instant::now() + PATIENCE;
    let mut value = client.submit(body, &Uuid::new_v4().to_string(), Some(PATIENCE.as_secs())).await?;
    let mut job = jobs::typed(&value)?;
    while !job.is_settled() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
        value = client.job(&job.id).await?;
        job = jobs::typed(&value)?;
    }
    if job.state == "succeeded" {
        return Ok((job, value));
    }
    let why = job.error.as_ref().map(|error| format!(": {}: {}", error.code, error.message));
    Err(Failure::job(render::clean(&format!("{what} is {}{}", job.state, why.unwrap_or_default()))))
}

fn proven(
    title: &'static str,
    place: String,
    sent: &[u8],
    arrived: &[u8],
    job: &Job,
    value: &Value,
) -> Result<Delivery, Failure> {
    let (expected, sha256) = (sha256(sent), sha256(arrived));
    if sent != arrived {
        return Err(Failure::job(format!(
            "what arrived at {place} is not what was sent: {} bytes with SHA-256 {sha256} instead of {} with {expected}",
            arrived.len(),
            sent.len(),
        )));
    }
    // A drop tells the digest of what it wrote.
    let told = value.pointer("/result/sha256").and_then(Value::as_str);
    if told.is_some_and(|told| told != sha256) {
        return Err(Failure::job(format!("the job's result tells another digest than that of {place}")));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Delivery {
        title,
        state: job.state.clone(),
        job: job.id.clone(),
        place,
        size: arrived.len(),
        sha256,
        submitted_at: text("created_at"),
        finished_at: text("finished_at"),
    })
}

/// SHA-256 as 64 hex digits.
pub(crate) fn sha256(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::{EVENT, EXPORT, sha256};
    use std::collections::BTreeMap;

    #[test]
    fn the_export_is_a_balanced_fec_of_600_lines() {
        let text = std::str::from_utf8(EXPORT).unwrap();
        assert!(text.ends_with("\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
        let mut rows = text.split_terminator("\r\n").map(|line| line.split('\t').collect::<Vec<_>>());
        assert_eq!(rows.next().unwrap()[..4], ["JournalCode", "JournalLib", "EcritureNum", "EcritureDate"]);
        let cents = |text: &str| -> i64 { text.replace(',', "").parse().unwrap() };
        let (mut entries, mut lines) = (BTreeMap::<&str, i64>::new(), 0);
        for row in rows {
            assert_eq!(row.len(), 18, "{row:?}");
            *entries.entry(row[2]).or_default() += cents(row[11]) - cents(row[12]);
            lines += 1;
        }
        assert_eq!((lines, entries.len()), (600, 200));
        assert!(entries.values().all(|balance| *balance == 0));
    }

    #[test]
    fn the_event_is_the_suites_and_its_digest_has_64_digits() {
        let event: serde_json::Value = serde_json::from_slice(EVENT).unwrap();
        assert_eq!(event["EventKind"], "CommandeValidee");
        assert_eq!(sha256(EVENT).len(), 64);
    }
}
