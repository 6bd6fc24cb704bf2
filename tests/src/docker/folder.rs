//! The configuration folder that an operator maps into the agent's container.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, lchown},
    path::Path,
};
use tempfile::TempDir;

/// The account of the images.
pub const ACCOUNT: u32 = 10_001;

/// A folder on the host.
pub struct Folder {
    dir: TempDir,
}

impl Folder {
    /// An empty one that belongs to the image's account.
    #[must_use]
    pub fn new() -> Self {
        let folder = Self::of_root();
        give(folder.path(), ACCOUNT);
        folder
    }

    /// An empty one that belongs to root, as the engine makes it for a mapped folder that is not there.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn of_root() -> Self {
        let dir =
            tempfile::Builder::new().prefix("passerelle-folder-").tempdir().expect("a temporary folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its rights");
        Self { dir }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `HOST:PATH`, as `docker run -v` takes it.
    #[must_use]
    pub fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.path().display())
    }

    /// Writes a file, and gives all to the owner of the folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder in it");
        fs::write(&path, content).expect("a file in it");
        let secret = name.starts_with("secrets/");
        let mode = if secret { 0o600 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its rights");
        give(self.path(), fs::metadata(self.path()).expect("the folder").uid());
        self
    }

    /// The files in it, sorted, folders with a `/` at the end.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        walk(self.path(), &mut |path, is_dir| {
            let name = path.strip_prefix(self.path()).unwrap_or(path).display();
            names.push(format!("{name}{}", if is_dir { "/" } else { "" }));
        });
        names.sort();
        names
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives a folder and all in it to an account; needs root.
///
/// # Panics
/// If that is refused.
pub fn give(folder: &Path, account: u32) {
    lchown(folder, Some(account), Some(account)).unwrap_or_else(|e| {
        panic!("{} cannot be given to uid {account} (needs root): {e}", folder.display())
    });
    walk(folder, &mut |path, _| {
        lchown(path, Some(account), Some(account)).expect("another owner");
    });
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path, bool)) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let is_dir = entry.file_type().expect("its type").is_dir();
        each(&entry.path(), is_dir);
        if is_dir {
            walk(&entry.path(), each);
        }
    }
}
