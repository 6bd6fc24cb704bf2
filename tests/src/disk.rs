//! A small disk that can be filled: a `tmpfs` of its own.

use crate::run;
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// Whether this process may mount.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A mounted `tmpfs`, gone with this value.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of `size` (`4m`).
    ///
    /// # Panics
    /// If it cannot be mounted; only root can.
    #[must_use]
    pub fn mount(size: &str) -> Self {
        let folder =
            tempfile::Builder::new().prefix("passerelle-disk-").tempdir().expect("a temporary folder");
        let output = run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path()));
        assert!(
            output.status.success(),
            "cannot mount a tmpfs (run the tests as root): {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { folder }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Mounts it read-only, or writable again.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn read_only(&self, read_only: bool) {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        let output = run(Command::new("mount").args(["-o", mode]).arg(self.path()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes all the space there is left.
    ///
    /// # Panics
    /// If the disk fails otherwise than by being full.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("a filler file");
        // Smaller and smaller pieces, so that not even one block stays free.
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    /// Gives the space back.
    ///
    /// # Panics
    /// If it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("the filler file");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of the test may still hold a file open while the values of the test go.
        let _best_effort = run(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}
