//! A job's parameters against the operator's rules: what is allowed lies inside the rules by a second, simpler reading.
//!
//! The bytes are three lines and a rest: the resource (`files` or `app`), path globs apart by `|`, the operation, and the
//! parameters as JSON.

use passerelle_agent::policy::{ResourcePolicy, Spent};
use passerelle_config::Diagnostics;
use passerelle_connectors::{DynConnector, REGISTRY};
use serde_json::Value;
use std::{fs, path::PathBuf, sync::LazyLock};
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary folder")
});

/// Plays the call against a resource with these globs.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(4, '\n');
    let (Some(resource), Some(globs), Some(operation), Some(params)) =
        (lines.next(), lines.next(), lines.next(), lines.next())
    else {
        return;
    };
    let Ok(params) = serde_json::from_str::<Value>(params) else { return };
    let globs: Vec<&str> = globs.split('|').collect();
    let Some((connector, policy)) = configured(resource, &globs) else { return };
    let Ok(demands) = connector.demands(operation, &params) else { return };
    if policy.decide_after(operation, &demands, Some(1), &Spent::new()).is_err() {
        return;
    }
    assert!(policy.allowed_operations().iter().any(|allowed| allowed == operation));
    for path in &demands.paths {
        assert!(!path.starts_with('/') && !path.contains('\0'), "{path:?} may leave the root");
        assert!(path.split('/').all(|part| part != ".." && part != "."), "{path:?} may leave the root");
        if resource == "app" {
            let folded = path.to_ascii_lowercase();
            assert!(!folded.contains('\\') && !folded.contains("%2f"), "{path:?} may mean another path");
        }
        // Only globs that the simple reading below knows are judged by it; a listing's path is a pattern.
        let simple = |glob: &&&str| glob.chars().all(|c| c.is_ascii_alphanumeric() || "._-/*".contains(c));
        if operation != "list" && globs.iter().all(|glob| simple(&glob)) {
            assert!(globs.iter().any(|glob| matches(glob, path)), "{path:?} is outside {globs:?}");
        }
    }
}

type Configured = (std::sync::Arc<dyn DynConnector>, ResourcePolicy);

fn configured(resource: &str, globs: &[&str]) -> Option<Configured> {
    let root = FOLDER.path().join("root");
    let _exists = fs::create_dir(&root);
    let paths: Vec<Value> = globs.iter().map(|glob| Value::from(*glob)).collect();
    let paths = paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let text = match resource {
        "files" => format!(
            "connector = \"file\"\nurl = \"file://{}\"\n[[resources.x.allow]]\npaths = [{paths}]\n\
             operations = [\"drop\", \"fetch\", \"list\", \"stat\", \"move\", \"delete\"]\n",
            root.display()
        ),
        "app" => format!(
            "connector = \"http\"\nurl = \"http://127.0.0.1:9/api/\"\n[[resources.x.allow]]\npaths = [{paths}]\n\
             operations = [\"request\", \"notify\"]\nmethods = [\"GET\", \"POST\"]\nquery = [\"q\"]\nheaders = [\"x-a\"]\n"
        ),
        _ => return None,
    };
    let main =
        format!("[hub]\nurl = \"https://hub.example.com\"\n[agent]\nname = \"a\"\n[resources.x]\n{text}");
    fs::write(FOLDER.path().join("agent.toml"), main).expect("agent.toml");
    let config = passerelle_config::load(FOLDER.path()).ok()?;
    let resource = config.resources.first()?;
    let entry = REGISTRY.iter().find(|entry| entry.name == resource.connector)?;
    let mut diagnostics = Diagnostics::default();
    let connector = entry.check(&resource.section, &mut diagnostics)?.build(FOLDER.path()).ok()?;
    let policy = ResourcePolicy::compile(resource, &entry.operations(), &mut diagnostics)?;
    Some((connector, policy))
}

/// Globs of plain text, `*` within a part and `**` as a whole part, read slowly and simply.
fn matches(glob: &str, path: &str) -> bool {
    let (globs, parts): (Vec<&str>, Vec<&str>) = (glob.split('/').collect(), path.split('/').collect());
    parts_match(&globs, &parts)
}

fn parts_match(globs: &[&str], parts: &[&str]) -> bool {
    match (globs, parts) {
        ([], []) => true,
        // At the end `**` stands for one part at least.
        (["**"], parts) => !parts.is_empty(),
        (["**", rest @ ..], parts) => (0..=parts.len()).any(|skip| parts_match(rest, &parts[skip..])),
        ([glob, globs @ ..], [part, parts @ ..]) => {
            part_matches(glob.as_bytes(), part.as_bytes()) && parts_match(globs, parts)
        }
        _ => false,
    }
}

fn part_matches(glob: &[u8], part: &[u8]) -> bool {
    match (glob, part) {
        ([], []) => true,
        ([b'*', rest @ ..], part) => (0..=part.len()).any(|skip| part_matches(rest, &part[skip..])),
        ([g, glob @ ..], [p, part @ ..]) => g == p && part_matches(glob, part),
        _ => false,
    }
}
