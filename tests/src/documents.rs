//! The commands that documents tell readers to type, as they stand there.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A fenced block of a document.
#[derive(Debug, Clone)]
pub struct Block {
    /// The document, below the repository.
    pub document: String,
    /// The line of its fence, from 1.
    pub line: usize,
    /// What stands behind the fence: `sh`, `toml`…
    pub language: String,
    /// What is between the fences, without their indentation.
    pub text: String,
}

impl Block {
    /// Whether it is to be typed.
    #[must_use]
    pub fn is_typed(&self) -> bool {
        matches!(self.language.as_str(), "sh" | "powershell")
    }

    /// Its commands: lines, where one that ends with a backslash goes on in the next. Not for here-documents.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        joined.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// The repository's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every fenced block of a document, in order.
///
/// # Panics
/// If it cannot be read, or a fence is not closed.
#[must_use]
pub fn blocks(document: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
    let mut found: Vec<Block> = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        match (&mut open, bare.strip_prefix("```")) {
            (None, Some(language)) => {
                let block = Block {
                    document: document.to_owned(),
                    line: number + 1,
                    language: language.trim().to_owned(),
                    text: String::new(),
                };
                open = Some((indent, block));
            }
            (Some(_), Some(_)) => found.extend(open.take().map(|(_, block)| block)),
            (Some((indent, block)), None) => {
                let inside = line.get(*indent..).unwrap_or_default();
                block.text.push_str(inside);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{document}: a fence is not closed");
    found
}

/// The blocks of a document that are to be typed.
#[must_use]
pub fn typed(document: &str) -> Vec<Block> {
    blocks(document).into_iter().filter(Block::is_typed).collect()
}
