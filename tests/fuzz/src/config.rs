//! The operator's configuration: any text is a configuration, or is refused with places in it; never a panic.

use std::{fs, path::PathBuf, sync::LazyLock};
use tempfile::TempDir;

/// What stands between `agent.toml` and a file of `resources.d` in the bytes.
const BETWEEN: &[u8] = b"\n=====\n";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    // In memory where there is such a place: each run writes two files.
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder");
    fs::create_dir(folder.path().join("resources.d")).expect("resources.d");
    folder
});

/// Reads the bytes as a configuration folder.
pub fn run(data: &[u8]) {
    let at = data.windows(BETWEEN.len()).position(|window| window == BETWEEN);
    let (main, resources) = at.map_or((data, None), |at| (&data[..at], Some(&data[at + BETWEEN.len()..])));
    let extra = FOLDER.path().join("resources.d/more.toml");
    fs::write(FOLDER.path().join("agent.toml"), main).expect("agent.toml");
    match resources {
        Some(text) => fs::write(&extra, text).expect("resources.d/more.toml"),
        None if extra.exists() => fs::remove_file(&extra).expect("resources.d/more.toml"),
        None => {}
    }
    match passerelle_config::load(FOLDER.path()) {
        Ok(config) => {
            // Told again from the same files, it is the same: a reload of nothing new changes nothing.
            let again = passerelle_config::load(FOLDER.path()).expect("the same configuration");
            assert_eq!(format!("{:?}", config.hub), format!("{:?}", again.hub));
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty(), "refused without a finding");
            assert!(!diagnostics.to_string().is_empty());
        }
    }
}
