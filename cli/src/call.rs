//! `call`: an operation carried out at once.

use crate::{
    Failure,
    args::call::Call,
    client::{Called, Client},
    jobs, keys,
    out::Out,
    render, signed, submission,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::Sha256;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{fmt::Write as _, fs, path::Path};

/// The hub's answer, as far as people want to see it.
#[derive(Debug, Deserialize)]
struct Done {
    id: String,
    result: Value,
    output: Option<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    size: u64,
    sha256: String,
    #[serde(default)]
    media_type: String,
    text: Option<String>,
    base64: Option<String>,
    blob: Option<String>,
}

pub(crate) async fn run(command: &Call, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let body = match &command.sign_key {
        Some(key) => {
            // Before anything is uploaded.
            let key = keys::read(key)?;
            let payload = match &command.payload {
                Some(file) => Some(jobs::uploaded(&client, file, command.media_type.as_deref()).await?),
                None => None,
            };
            signed::call(&client, command, payload, &key).await?
        }
        None => body(&client, command).await?,
    };
    let answer = match client.call(&Value::Object(body), command.timeout).await? {
        Called::Done(answer) => answer,
        Called::Failed { code, message, effect } => {
            let effect = if effect.is_empty() { String::new() } else { format!(" (effect: {effect})") };
            return Err(Failure::job(render::clean(&format!("the call failed: {code}: {message}{effect}"))));
        }
    };
    let done = Done::deserialize(&answer)
        .map_err(|e| Failure::hub(format!("the answer is not that of a call ({e}); is it a hub?")))?;
    if let (Some(file), Some(output)) = (&command.output, &done.output) {
        save(&client, output, file).await?;
    } else if command.output.is_some() {
        return Err(Failure::job("the call succeeded and has no output"));
    }
    if command.connection.json {
        out.json(&answer);
    } else {
        out.text(&told(&done, command.output.as_deref()));
    }
    Ok(())
}

async fn body(client: &Client, command: &Call) -> Result<Map<String, Value>, Failure> {
    let params = submission::params(command.params.as_deref(), &command.param)?;
    let mut body = Map::new();
    for (key, value) in [
        ("site", json!(command.site)),
        ("resource", json!(command.resource)),
        ("operation", json!(command.operation)),
        ("params", Value::Object(params)),
        ("timeout_s", json!(command.timeout.as_secs())),
    ] {
        body.insert(key.to_owned(), value);
    }
    if let Some(file) = &command.payload {
        let payload = jobs::payload(client, file, command.media_type.as_deref()).await?;
        body.insert("payload".to_owned(), Value::Object(payload));
    }
    Ok(body)
}

/// Writes the output to a file, once it has proved whole.
async fn save(client: &Client, output: &Output, file: &Path) -> Result<(), Failure> {
    let content = match (&output.text, &output.base64, &output.blob) {
        (Some(text), _, _) => text.clone().into_bytes(),
        (_, Some(base64), _) => {
            STANDARD.decode(base64).map_err(|_| Failure::hub("the output is not base64; is it a hub?"))?
        }
        (_, _, Some(blob)) => return jobs::download(client.blob(blob).await?, &output.sha256, file).await,
        (None, None, None) => return Err(Failure::hub("the output has no content; is it a hub?")),
    };
    if Sha256::of(&content).to_string() != output.sha256 {
        return Err(Failure::hub("the output does not have the digest that was told"));
    }
    fs::write(file, content)
        .map_err(|e| Failure::usage(format!("--output: cannot write {}: {e}", file.display())))
}

fn told(done: &Done, saved: Option<&Path>) -> String {
    let mut text = format!("{:<10} {}\n", "call", render::clean(&done.id));
    // Writing to a string does not fail.
    let _ = writeln!(text, "{:<10} {}", "result", render::clean(&done.result.to_string()));
    if let Some(Output { size, sha256, media_type, text: content, .. }) = &done.output {
        let place = saved.map(|file| format!(", in {}", file.display())).unwrap_or_default();
        let line = format!("{size} bytes, {media_type}, SHA-256 {sha256}{place}");
        let _ = writeln!(text, "{:<10} {}", "output", render::clean(&line));
        if let (Some(content), None) = (content, saved) {
            for line in content.lines() {
                let _ = writeln!(text, "  {}", render::clean(line));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Done, told};
    use serde_json::json;

    #[test]
    fn an_answer_is_told_line_by_line_and_harmless_to_the_terminal() {
        let done: Done = serde_json::from_value(json!({
            "id": "0193", "result": {"status": 200}, "later": 1,
            "output": {"size": 9, "sha256": "ab", "media_type": "text/plain", "text": "a\u{1b}[2J\nb\n"},
        }))
        .unwrap();
        let expected = "call       0193\nresult     {\"status\":200}\n\
                        output     9 bytes, text/plain, SHA-256 ab\n  a\u{fffd}[2J\n  b\n";
        assert_eq!(told(&done, None), expected);
        let none: Done = serde_json::from_value(json!({"id": "1", "result": {}})).unwrap();
        assert_eq!(told(&none, None), "call       1\nresult     {}\n");
    }
}
