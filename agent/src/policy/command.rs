//! `passerelle-agent policy explain` and `policy test`: what the cloud can do here, and whether it may do this.

use super::{
    Question, Refused, Spent,
    explain::{Difference, Overview, at, difference},
};
use crate::{exit::Stop, settings::Settings};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use clap::{Args, Subcommand};
use passerelle_config::ByteSize;
use passerelle_protocol::{Code, Name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// The longest job that is read: what the hub takes inline, and a little.
const MAX_JOB: u64 = 64 * 1024 * 1024;

/// The commands about the local policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print in plain words all that the cloud can do here.
    #[command(
        after_help = "Needs neither network nor a running agent. Mistakes in the folder are printed too; then the exit code is 64. \
        Nothing else is printed where they hide what a file allows.\n\n\
        Examples:\n  passerelle-agent policy explain\n  \
        passerelle-agent --config ./new policy explain --diff ./old   what the cloud could do more, and less"
    )]
    Explain(ExplainArgs),
    /// Tell whether a job would be allowed, and by which rule.
    #[command(
        after_help = "The job is what is submitted at the API ({\"site\",\"resource\",\"operation\",\"params\",\"payload\"?} or {\"envelope\"}).\n\
        Exit codes: 0 allowed, 1 denied, 64 not a job, or a configuration with mistakes.\n\n\
        Examples:\n  passerelle-agent policy test job.json\n  \
        echo '{\"resource\":\"compta\",\"operation\":\"drop\",\"params\":{\"path\":\"a.csv\"}}' | passerelle-agent policy test -"
    )]
    Test(TestArgs),
}

/// What `policy explain` takes.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Print only what differs from another configuration folder.
    #[arg(long, value_name = "OLD_DIR")]
    diff: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `policy test` takes.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The file with the job; `-` for standard input.
    #[arg(value_name = "JOB.json")]
    job: PathBuf,
    /// The size of a payload that the job names as a blob ("64MiB").
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a command prints, and how it ends.
pub type Told = (String, Result<(), Stop>);

/// Runs a command.
///
/// # Errors
/// If there is nothing to print.
pub fn run(config: &Path, command: PolicyCommand) -> Result<Told, Stop> {
    match command {
        PolicyCommand::Explain(args) => explain(config, &args),
        PolicyCommand::Test(args) => test(config, &args),
    }
}

fn explain(config: &Path, args: &ExplainArgs) -> Result<Told, Stop> {
    let now = Overview::read(config);
    let mut findings = now.findings.clone();
    let text = match &args.diff {
        // What is missing would look as if the cloud could not do it.
        None if !now.complete => String::new(),
        None if args.json => pretty(&now)?,
        None => now.to_string(),
        Some(old) => {
            let old = Overview::read(old);
            findings.extend_from_slice(&old.findings);
            let changes: Difference = difference(&old, &now);
            match (old.is_certain() && now.is_certain(), args.json) {
                (false, _) => String::new(),
                (true, true) => pretty(&changes)?,
                (true, false) => changes.to_string(),
            }
        }
    };
    let end = if findings.is_empty() {
        Ok(())
    } else {
        Err(Stop::Configuration(findings.iter().map(|line| format!("error: {line}\n")).collect()))
    };
    Ok((text, end))
}

/// A job as it is submitted. What the policy does not ask about is passed over.
#[derive(Debug, Deserialize)]
struct Job {
    resource: Name,
    operation: Name,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    payload: Option<Payload>,
}

#[derive(Debug, Deserialize)]
struct Payload {
    text: Option<String>,
    base64: Option<String>,
    /// As in an envelope.
    size: Option<u64>,
}

impl Payload {
    fn size(&self) -> Result<Option<u64>, String> {
        match self {
            Self { text: Some(text), .. } => Ok(Some(text.len() as u64)),
            Self { base64: Some(base64), .. } => {
                let bytes = STANDARD.decode(base64).map_err(|e| format!("payload.base64: {e}"))?;
                Ok(Some(bytes.len() as u64))
            }
            Self { size, .. } => Ok(*size),
        }
    }
}

/// What `policy test` says.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Verdict {
    allowed: bool,
    resource: Name,
    operation: Name,
    /// Why not, as the job's outcome would say it.
    code: Option<Code>,
    message: Option<String>,
    /// The rule that allows it, or came nearest.
    rule: Option<usize>,
    /// Where that stands; the resource, if no rule came near.
    at: Option<String>,
    /// What could not be looked at.
    notes: Vec<String>,
}

fn test(config: &Path, args: &TestArgs) -> Result<Told, Stop> {
    let not_a_job = |what: String| Stop::Configuration(format!("{}: {what}", args.job.display()));
    let text = read(&args.job).map_err(|e| not_a_job(e.to_string()))?;
    let mut notes = Vec::new();
    let job = job(&text, &mut notes).map_err(not_a_job)?;
    let given = args.size.clone().map(ByteSize::try_from).transpose();
    let given = given.map_err(|e| Stop::Configuration(format!("--size: {e}")))?.map(|size| size.0);
    let settings = Settings::load(config)?;
    let size = match &job.payload {
        None => None,
        Some(payload) => given.or(payload.size().map_err(not_a_job)?),
    };
    if job.payload.is_some() && size.is_none() {
        notes.push(
            "the size of the blob is not known: limits on sizes are not looked at; give --size".to_owned(),
        );
    }
    let question = Question {
        resource: &job.resource,
        operation: job.operation.as_str(),
        params: &job.params,
        has_payload: job.payload.is_some(),
        size,
    };
    let decided = settings.judge(question, &Spent::new());
    let (rule, failure) = match &decided {
        Ok(judged) => (Some(judged.rule), None),
        Err(Refused { failure, nearest }) => (*nearest, Some(failure)),
    };
    if decided.as_ref().is_ok_and(|judged| judged.daily.is_limited()) {
        notes.push("the rule has a limit per day, of which today's use is not looked at".to_owned());
    }
    if decided.as_ref().is_ok_and(|judged| !judged.visible.is_everything()) {
        notes.push("the listing shows only the names that the rule allows".to_owned());
    }
    let resource = settings.resources.get(&job.resource);
    let configured = settings.config.resources.iter().find(|of| of.name == job.resource.as_str());
    let place = rule
        .and_then(|rule| resource?.policy.place(rule).cloned())
        .or_else(|| configured.map(|of| of.section.finding("", "")));
    let verdict = Verdict {
        allowed: decided.is_ok(),
        code: failure.map(|failure| failure.code),
        message: failure.map(|failure| failure.message.clone()),
        rule,
        at: place.map(|place| at(&place, &settings.config.dir)),
        notes,
        resource: job.resource,
        operation: job.operation,
    };
    let text = if args.json { pretty(&verdict)? } else { verdict.in_words() };
    let end = if verdict.allowed { Ok(()) } else { Err(Stop::Failed("denied".to_owned())) };
    Ok((text, end))
}

impl Verdict {
    fn in_words(&self) -> String {
        let Self { resource, operation, at, .. } = self;
        let at = at.as_deref().unwrap_or("no file");
        let mut text = match (self.allowed, self.rule) {
            (true, rule) => format!("allow: {operation} by {resource}#{} ({at})\n", rule.unwrap_or_default()),
            (false, rule) => {
                let code = self.code.map_or("", Code::as_str);
                let message = self.message.as_deref().unwrap_or_default();
                let nearest = match (rule, self.at.is_some()) {
                    (Some(rule), _) => format!("the nearest rule is {resource}#{rule} ({at})"),
                    (None, true) => format!("no rule of {resource} comes near ({at})"),
                    (None, false) => "no resource of that name is configured".to_owned(),
                };
                format!("deny: {code}: {message}\n{nearest}\n")
            }
        };
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(MAX_JOB + 1).read_to_end(&mut text)?
    } else {
        File::open(path)?.take(MAX_JOB + 1).read_to_end(&mut text)?
    };
    if read as u64 > MAX_JOB {
        return Err(io::Error::other(format!("longer than {MAX_JOB} bytes")));
    }
    Ok(text)
}

/// Reads a job, a signed envelope in its place, or an envelope's claims.
fn job(text: &[u8], notes: &mut Vec<String>) -> Result<Job, String> {
    #[derive(Deserialize)]
    struct Signed {
        envelope: String,
    }
    if let Ok(Signed { envelope }) = serde_json::from_slice::<Signed>(text) {
        let claims = envelope.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims =
            claims.ok_or("envelope: not a compact JWS (three parts in base64url with dots between)")?;
        notes.push("signature, audience and times of the envelope are not looked at here".to_owned());
        return serde_json::from_slice(&claims).map_err(|e| format!("envelope: its claims are no job: {e}"));
    }
    serde_json::from_slice(text).map_err(|e| {
        format!("not a job: {e}; expected {{\"resource\",\"operation\",\"params\",\"payload\"?}} or {{\"envelope\"}}")
    })
}

fn pretty<T: Serialize>(value: &T) -> Result<String, Stop> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| Stop::Bug(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const RULE: &str = "[resources.r]\nconnector = \"file\"\nurl = \"file:///srv\"\n\
                        [[resources.r.allow]]\noperations = [\"stat\"]\npaths = [\"**\"]\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("resources.d")).unwrap();
        fs::write(folder.path().join("agent.toml"), "[hub]\nurl = \"https://hub.example.com\"\n").unwrap();
        for (name, text) in files {
            fs::write(folder.path().join("resources.d").join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn nothing_is_said_of_a_folder_whose_files_cannot_all_be_read() {
        let good = folder(&[("r.toml", RULE)]);
        let unclosed = RULE.replace("[\"**\"]", "[\"**\"");
        for (what, files) in [
            ("the only file", vec![("r.toml", unclosed.as_str())]),
            ("one of two files", vec![("r.toml", RULE), ("s.toml", "[resources.s\n")]),
            (
                "a mistyped section",
                vec![("r.toml", RULE), ("s.toml", "[resource.s]\nconnector = \"file\"\n")],
            ),
            ("a name twice", vec![("r.toml", RULE), ("s.toml", RULE)]),
        ] {
            let bad = folder(&files);
            for json in [false, true] {
                for (config, diff) in [
                    (bad.path(), None),
                    (bad.path(), Some(good.path())),
                    (good.path(), Some(bad.path())),
                    (bad.path(), Some(bad.path())),
                ] {
                    let args = ExplainArgs { diff: diff.map(Path::to_owned), json };
                    let (text, end) = explain(config, &args).unwrap();
                    assert_eq!(text, "", "{what} {config:?} {diff:?}");
                    assert!(matches!(end, Err(Stop::Configuration(_))), "{what}: {end:?}");
                }
            }
        }
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_shown_but_not_compared() {
        let good = folder(&[("r.toml", RULE)]);
        let bad = folder(&[("r.toml", &RULE.replace("stat", "teleport"))]);
        let args = ExplainArgs { diff: None, json: false };
        let (text, _) = explain(bad.path(), &args).unwrap();
        assert!(text.contains("Nothing until its mistakes are mended"), "{text}");
        let args = ExplainArgs { diff: Some(good.path().to_owned()), json: false };
        let (text, end) = explain(bad.path(), &args).unwrap();
        assert_eq!(text, "");
        end.unwrap_err();
    }
}
