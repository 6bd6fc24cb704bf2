//! The connector alone, in a process of its own so that its processor time and memory show: drops what a manifest lists.

use super::place::{Place, support::call};
use futures_util::{StreamExt as _, stream};
use passerelle_config::Diagnostics;
use passerelle_connectors::{DynConnector, Input, Output, REGISTRY};
use passerelle_protocol::Sha256;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The hidden argument that starts it.
pub const ARGUMENT: &str = "--connector-alone";
/// How many files are under way at once, as an agent runs jobs of a resource.
const AT_ONCE: usize = 8;

/// The command line that drops what `manifest` lists.
pub fn command(place: &Place, manifest: &Path) -> String {
    let own = std::env::current_exe().expect("this program");
    format!("{} {ARGUMENT} {} {}", own.display(), place.config().display(), manifest.display())
}

/// Carries it out: the configuration folder and the manifest are the arguments.
pub async fn run(arguments: &[String]) {
    let [config, manifest] = arguments else { panic!("{ARGUMENT} CONFIG MANIFEST") };
    let connector = connector(Path::new(config));
    let manifest = fs::read_to_string(manifest).expect("the manifest");
    let files = manifest.lines().map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [source, target, size, digest] = fields.as_slice() else {
            panic!("a line of the manifest: {line}")
        };
        let digest: Sha256 = digest.parse().expect("a digest");
        (PathBuf::from(source), (*target).to_owned(), size.parse::<u64>().expect("a size"), digest)
    });
    stream::iter(files)
        .for_each_concurrent(AT_ONCE, async |(source, target, size, digest)| {
            let reader = tokio::fs::File::open(source).await.expect("the source");
            let input =
                Input::new(Box::new(reader), size, *digest.bytes(), "application/octet-stream".to_owned());
            let mut output = Output::new(Box::new(tokio::io::sink()), 0);
            let params = json!({"path": target});
            let outcome = connector.execute(&call(), "drop", &params, Some(input), &mut output).await;
            assert!(outcome.is_ok(), "{target}: {outcome:?}");
        })
        .await;
}

fn connector(folder: &Path) -> Arc<dyn DynConnector> {
    let config = passerelle_config::load(folder).unwrap_or_else(|found| panic!("{found}"));
    let resource = config.resources.first().expect("a resource");
    let entry = REGISTRY.iter().find(|entry| entry.name == resource.connector).expect("its kind");
    let mut found = Diagnostics::default();
    let checked = entry.check(&resource.section, &mut found).unwrap_or_else(|| panic!("{found}"));
    checked.build(folder).unwrap_or_else(|error| panic!("{error:?}"))
}
