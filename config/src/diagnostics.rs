//! Findings: where, which key, what is wrong and what is right.

use std::{fmt, path::PathBuf};

/// One finding, or just a place (with an empty message).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The key, as `resources.compta.url`.
    pub path: String,
    /// What is wrong and what is right. Never a secret's value.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}: {}", self.file.display(), self.line, self.column, self.path, self.message)
    }
}

/// All findings of one load.
#[derive(Debug, Default)]
pub struct Diagnostics {
    findings: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds one that refuses nothing but is worth a look.
    pub fn warn(&mut self, warning: Finding) {
        self.warnings.push(warning);
    }

    /// Those that refuse nothing.
    #[must_use]
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// Puts them in the order of files, lines and columns.
    pub fn sort(&mut self) {
        let key =
            |finding: &Finding| (finding.file.clone(), finding.line, finding.column, finding.path.clone());
        self.findings.sort_by_cached_key(key);
        self.warnings.sort_by_cached_key(key);
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// All of them.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "error: {finding}"))
    }
}

impl std::error::Error for Diagnostics {}
