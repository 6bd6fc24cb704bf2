//! Writes `docs/en/configuration-reference.md` from the programs as they are built.

use passerelle_tests::reference;
use std::{fs, process::ExitCode};

fn main() -> ExitCode {
    match fs::write(reference::path(), reference::text()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", reference::path().display());
            ExitCode::FAILURE
        }
    }
}
