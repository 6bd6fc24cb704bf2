//! Finds and reads the files of a configuration folder, each bounded.

use crate::{Finding, defaults, mapped};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// A finding about a whole file or folder.
fn about(file: &Path, path: &str, message: impl Into<String>) -> Finding {
    Finding { file: file.to_owned(), line: 1, column: 1, path: path.to_owned(), message: message.into() }
}

/// Checks that the folder is there.
pub(crate) fn check_dir(dir: &Path) -> Result<(), Finding> {
    if let Some(message) = dir.to_str().and_then(mapped::windows) {
        return Err(about(dir, "configuration folder", message));
    }
    let message = match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => {
            "not a folder; --config and PASSERELLE_CONFIG name the folder that holds agent.toml".to_owned()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            "no such folder; mount the configuration folder there, or name another one with --config or \
             PASSERELLE_CONFIG"
                .to_owned()
        }
        Err(error) => mapped::unreadable(dir, &error),
    };
    Err(about(dir, "configuration folder", message))
}

/// The files of `resources.d`, sorted by name. Dot-files (editors' and mounts' own) don't count, as in a shell.
pub(crate) fn list_resources(dir: &Path) -> Result<Vec<PathBuf>, Finding> {
    let folder = dir.join("resources.d");
    let fail = |error: &io::Error| about(&folder, "resources.d", mapped::unreadable(&folder, error));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(about(&folder, "resources.d", "not a folder; make it one that holds *.toml files"));
        }
        Err(error) => return Err(fail(&error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fail(&error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".toml") && !name.starts_with('.') {
            files.push(entry.path());
        }
        if files.len() > defaults::MAX_FILES {
            let message = format!("more than {} files; put several resources into one", defaults::MAX_FILES);
            return Err(about(&folder, "resources.d", message));
        }
    }
    files.sort();
    Ok(files)
}

/// Opens a file that a setting names, if it is one: opening a named pipe would wait for a writer, perhaps for ever.
///
/// # Errors
/// As [`File::open`]; also if it is a folder, or neither folder nor file.
pub fn open_file(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pipe, socket or device, not a file"));
    }
    File::open(path)
}

/// Reads such a file.
///
/// # Errors
/// As [`open_file`]; also if it is longer than the 1 MiB of a configuration file.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(defaults::MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > defaults::MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Reads one file as text, without its byte order mark.
pub(crate) fn read(file: &Path) -> Result<String, Finding> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let finding = |message: String| about(file, &name, message);
    // Asked before opening: opening a named pipe would wait for a writer.
    match fs::metadata(file) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => {
            let hint = "a bind mount of a missing file makes a folder";
            return Err(finding(format!("not a file; put a TOML file there ({hint})")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let hint = mapped::no_configuration(file.parent().unwrap_or(file));
            return Err(finding(format!("no such file; {hint}")));
        }
        Err(error) => return Err(finding(mapped::unreadable(file, &error))),
    }
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(defaults::MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| finding(mapped::unreadable(file, &error)))?;
    if bytes.len() as u64 > defaults::MAX_FILE {
        return Err(finding(
            "larger than 1 MiB; split the resources over several files in resources.d".to_owned(),
        ));
    }
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        bytes = rest.to_vec();
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let line_start = valid.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&valid[line_start..]).chars().count() + 1;
        let utf_16 = [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| error.as_bytes().starts_with(mark));
        let what = if utf_16 { "text in UTF-16" } else { "not text in UTF-8" };
        Finding { line, column, ..finding(format!("{what}; save the file as UTF-8")) }
    })
}
