//! A bound on a program's memory, kept by the kernel: past it the program is killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A control group of its own, gone with this value if the program is.
pub struct MemoryBound {
    folder: PathBuf,
    peak: &'static str,
}

impl MemoryBound {
    /// A group whose programs get `bytes` together, caches and buffers of the kernel included.
    ///
    /// # Errors
    /// If this machine has none for us: no memory controller, or not root.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("passerelle-{}-{number}", std::process::id());
        let unified = Path::new("/sys/fs/cgroup");
        let (top, limit, peak) = if unified.join("cgroup.controllers").exists() {
            fs::write(unified.join("cgroup.subtree_control"), "+memory")?;
            (unified.to_owned(), "memory.max", "memory.peak")
        } else {
            (unified.join("memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        };
        let folder = top.join(name);
        fs::create_dir(&folder)?;
        let bound = Self { folder, peak };
        fs::write(bound.folder.join(limit), bytes.to_string())?;
        Ok(bound)
    }

    /// Puts a running program under the bound.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn hold(&self, process: u32) {
        fs::write(self.folder.join("cgroup.procs"), process.to_string()).expect("a process to bound");
    }

    /// The most that was used, where the kernel tells.
    #[must_use]
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        let _still_in_use = fs::remove_dir(&self.folder);
    }
}
