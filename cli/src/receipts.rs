//! `receipts verify`: whether an agent signed what a job says.

use crate::{Failure, args::VerifyReceipt, client::Client, lists, out::Out, render};
use passerelle_protocol::{Receipt, Sha256, VerifyingKey};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde_json::{Value, json};
use std::path::Path;

/// `SubjectPublicKeyInfo` of an Ed25519 key up to the key itself (RFC 8410 §4).
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A longer file is no job.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// A key and the agent that it is of, if the hub said so.
type Key = (VerifyingKey, Option<String>);

pub(crate) async fn verify(command: &VerifyReceipt, out: &Out) -> Result<(), Failure> {
    let (job, token) = subject(command).await?;
    let keys = keys(command, job.as_ref()).await?;
    let found = check(job.as_ref(), &token, &keys);
    let compared = if job.is_some() { "signature and job" } else { "signature" };
    match &found {
        Ok(receipt) if command.connection.json => {
            out.json(&json!({ "ok": true, "compared": compared, "receipt": receipt }));
        }
        Ok(receipt) => out.text(&text(receipt, compared)),
        Err(why) if command.connection.json => out.json(&json!({ "ok": false, "error": why })),
        Err(_) => {}
    }
    found.map(drop).map_err(|why| Failure::job(render::clean(&format!("the receipt does not hold: {why}"))))
}

/// The job, if there is one to compare with, and its receipt.
async fn subject(command: &VerifyReceipt) -> Result<(Option<Value>, String), Failure> {
    let subject = &command.subject;
    let job = if subject.parse::<uuid::Uuid>().is_ok() {
        Client::new(&command.connection)?.job(subject).await?
    } else {
        let text = read(Path::new(subject))?;
        if text.trim().split('.').count() == 3 && !text.trim_start().starts_with('{') {
            return Ok((None, text.trim().to_owned()));
        }
        serde_json::from_str(&text)
            .map_err(|e| Failure::usage(format!("{subject} holds neither a job's JSON nor a receipt: {e}")))?
    };
    match job.get("receipt").and_then(Value::as_str).map(str::to_owned) {
        Some(token) => Ok((Some(job), token)),
        None => {
            let state = job.get("state").and_then(Value::as_str).unwrap_or("in no known state");
            let message = format!("the job has no receipt; it is {state}, and agents sign successes only");
            Err(Failure::job(render::clean(&message)))
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::usage(format!("cannot read {}: {e}", path.display()));
    if std::fs::metadata(path).map_err(|e| failed(&e))?.len() > MAX_FILE {
        return Err(failed(&"it is longer than 4 MiB"));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

/// The keys that were given; else those that the hub shows of its agents.
async fn keys(command: &VerifyReceipt, job: Option<&Value>) -> Result<Vec<Key>, Failure> {
    if !command.agent_key.is_empty() {
        return command.agent_key.iter().map(|path| Ok((from_pem(path)?, None))).collect();
    }
    if command.connection.url.is_none() {
        return Err(Failure::usage("no key to check with: give --agent-key, or --url to ask the hub for it"));
    }
    let client = Client::new(&command.connection)?;
    let site = job.and_then(|job| job.get("site")).and_then(Value::as_str);
    let query: Vec<(&str, String)> = site.map(|site| ("site", site.to_owned())).into_iter().collect();
    let mut keys = Vec::new();
    for agent in lists::all(&client, "v1/agents", &query).await? {
        let id = agent.get("id").and_then(Value::as_str).map(str::to_owned);
        for key in agent.get("keys").and_then(Value::as_array).into_iter().flatten() {
            if let Some(Ok(key)) = key.get("public_key").cloned().map(serde_json::from_value::<VerifyingKey>)
            {
                keys.push((key, id.clone()));
            }
        }
    }
    Ok(keys)
}

fn from_pem(path: &Path) -> Result<VerifyingKey, Failure> {
    let wrong = |why: &str| Failure::usage(format!("--agent-key: {}: {why}", path.display()));
    let der = SubjectPublicKeyInfoDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|_| wrong("not a public key in PEM (BEGIN PUBLIC KEY)"))?;
    let bytes = der.as_ref().strip_prefix(&PREFIX).and_then(|key| <[u8; 32]>::try_from(key).ok());
    bytes.map(VerifyingKey::from_bytes).ok_or_else(|| wrong("not an Ed25519 public key"))
}

/// Checks signature and content.
fn check(job: Option<&Value>, token: &str, keys: &[Key]) -> Result<Receipt, String> {
    let receipt: Receipt = VerifyingKey::verify_any(keys.iter().map(|(key, _)| key), Receipt::TYP, token)
        .map_err(|e| e.to_string())?;
    let agent = receipt.agent.to_string();
    let signer = keys.iter().find(|(key, _)| key.verify::<Receipt>(Receipt::TYP, token).is_ok());
    if let Some((_, Some(owner))) = signer
        && *owner != agent
    {
        return Err(format!("it names agent {agent}, but was signed with a key of agent {owner}"));
    }
    let Some(job) = job else { return Ok(receipt) };
    let told = |key: &str| job.get(key).and_then(Value::as_str).unwrap_or("nothing").to_owned();
    for (what, in_job, in_receipt) in [
        ("job", told("id"), receipt.job.to_string()),
        ("resource", told("resource"), receipt.resource.to_string()),
        ("operation", told("operation"), receipt.operation.to_string()),
        ("state", told("state"), "succeeded".to_owned()),
    ] {
        if in_job != in_receipt {
            return Err(format!("the {what} is {in_job} in the job and {in_receipt} in the receipt"));
        }
    }
    let attempts = job.get("attempts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let known = attempts.iter().any(|attempt| {
        attempt.get("number") == Some(&json!(receipt.attempt)) && attempt.get("agent") == Some(&json!(agent))
    });
    if !known {
        return Err(format!("the job has no attempt {} by agent {agent}", receipt.attempt));
    }
    let result = job.get("result").cloned().unwrap_or_default();
    let digest = json!({ "sha256": Sha256::of(result.to_string().as_bytes()) });
    if result != receipt.result && digest != receipt.result {
        return Err("the job's result is another one than the agent signed".to_owned());
    }
    Ok(receipt)
}

fn text(receipt: &Receipt, compared: &str) -> String {
    let Receipt { agent, job, attempt, resource, operation, rule, iat, result, durability } = receipt;
    let at = jiff::Timestamp::from_second(*iat).map_or_else(|_| iat.to_string(), |at| at.to_string());
    let durability = durability.as_deref().map(|word| format!(", {word}")).unwrap_or_default();
    render::clean(&format!("the receipt holds ({compared})"))
        + "\n"
        + &render::clean(&format!("job {job}, attempt {attempt} by agent {agent} at {at}"))
        + "\n"
        + &render::clean(&format!("{operation} on {resource} by rule {rule}{durability}"))
        + "\n"
        + &render::clean(&result.to_string())
        + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use passerelle_protocol::{AgentId, JobId, SigningKey};

    fn world() -> (SigningKey, Receipt, Value) {
        let receipt = Receipt {
            agent: AgentId::new(1, &[1; 10]),
            job: JobId::new(1, &[2; 10]),
            attempt: 2,
            resource: "compta".parse().unwrap(),
            operation: "drop".parse().unwrap(),
            rule: "compta#1".to_owned(),
            iat: 1_795_240_801,
            result: json!({"path": "a.csv", "size": 1}),
            durability: Some("synced".to_owned()),
        };
        let job = json!({
            "id": receipt.job, "resource": "compta", "operation": "drop", "state": "succeeded",
            "attempts": [{"number": 2, "agent": receipt.agent}], "result": receipt.result,
        });
        (SigningKey::generate().unwrap().0, receipt, job)
    }

    #[test]
    fn a_receipt_holds_only_for_its_own_job_and_key() {
        let (key, receipt, job) = world();
        let keys = [(key.public().clone(), Some(receipt.agent.to_string()))];
        let token = key.sign(Receipt::TYP, &receipt).unwrap();
        assert_eq!(check(Some(&job), &token, &keys).as_ref(), Ok(&receipt));
        assert_eq!(check(None, &token, &keys).as_ref(), Ok(&receipt));
        for (member, value) in [
            ("id", json!(JobId::new(9, &[9; 10]))),
            ("resource", json!("other")),
            ("operation", json!("move")),
            ("state", json!("failed")),
            ("attempts", json!([{"number": 1, "agent": receipt.agent}])),
            ("attempts", json!([{"number": 2, "agent": AgentId::new(3, &[3; 10])}])),
            ("result", json!({"path": "a.csv", "size": 2})),
            ("result", Value::Null),
        ] {
            let mut other = job.clone();
            other[member] = value.clone();
            assert!(check(Some(&other), &token, &keys).is_err(), "{member}: {value}");
        }
        let stranger = SigningKey::generate().unwrap().0;
        let unknown = check(Some(&job), &token, &[(stranger.public().clone(), None)]);
        assert_eq!(unknown.unwrap_err(), "signed with an unknown key");
        let foreign = [(key.public().clone(), Some("another".to_owned()))];
        assert!(check(Some(&job), &token, &foreign).unwrap_err().contains("a key of agent another"));
        let mut changed = token.clone();
        changed.replace_range(
            token.len() - 6..token.len() - 5,
            if token.as_bytes()[token.len() - 6] == b'A' { "B" } else { "A" },
        );
        assert_eq!(check(None, &changed, &keys).unwrap_err(), "the signature does not fit");
    }

    #[test]
    fn a_long_result_is_compared_by_its_digest() {
        let (key, mut receipt, mut job) = world();
        let long = json!({"items": vec!["x"; 10_000]});
        receipt.result = json!({ "sha256": Sha256::of(long.to_string().as_bytes()) });
        job["result"] = long;
        let keys = [(key.public().clone(), None)];
        let token = key.sign(Receipt::TYP, &receipt).unwrap();
        assert_eq!(check(Some(&job), &token, &keys), Ok(receipt));
        job["result"]["items"][0] = json!("y");
        assert!(check(Some(&job), &token, &keys).is_err());
    }

    #[test]
    fn a_key_is_read_from_pem() {
        let (key, ..) = world();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let der = [&PREFIX[..], key.public().bytes()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        std::fs::write(&path, pem).unwrap();
        assert_eq!(from_pem(&path).ok().as_ref(), Some(key.public()));
        std::fs::write(&path, "nothing").unwrap();
        assert!(from_pem(&path).is_err());
    }
}
