//! The overview in plain words.

use super::{OperationView, Overview, ResourceView, RuleView, size};
use passerelle_connectors::Right;
use std::fmt::{self, Display, Write as _};

/// What an operation does, for somebody who has never seen the product.
fn meaning(operation: &str) -> &str {
    match operation {
        "drop" => "put whole files there",
        "fetch" => "read whole files",
        "list" => "see names, sizes and times of what lies on these paths",
        "stat" => "see size and time of a file whose name it knows",
        "move" => "move and rename files",
        "delete" => "delete files",
        "request" => "send requests and read the answers",
        "upsert" => "create records and change their fields",
        "get" => "read one record whose id or key it knows",
        "find" => "search for records by their fields",
        "changes" => "read which records changed, and what they are now",
        "call" => "make the calls that the resource declares",
        "notify" => "send notifications, without seeing the answer's content",
        _ => "do what the connector's documentation says",
    }
}

/// Whether a right means something for an operation.
pub(super) fn has_right(operation: &str, right: Right) -> bool {
    match right {
        Right::Replace => matches!(operation, "drop" | "move"),
        Right::CreateDirs => operation == "drop",
        Right::DeleteAfterFetch => operation == "fetch",
    }
}

/// What a right allows.
pub(super) fn right(name: &str) -> &str {
    match name {
        "replace" => "replace what is there",
        "create_dirs" => "create folders",
        "delete_after_fetch" => "delete or move away what it has read",
        other => other,
    }
}

impl Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.resources.is_empty() {
            f.write_str("The cloud can do nothing here: no resource is configured.\n")?;
        } else {
            f.write_str(
                "All that the cloud can do here. What is not listed is denied, whoever signed it.\n",
            )?;
        }
        for resource in &self.resources {
            write!(f, "\n{resource}")?;
        }
        f.write_str("\nWhat the agent sends out by itself:\n")?;
        self.sends.iter().try_for_each(|line| writeln!(f, "  - {line}"))
    }
}

impl Display for ResourceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.as_deref().unwrap_or("a place that the configuration does not say rightly");
        writeln!(f, "{} ({}, {}) leads to {place}", self.name, self.connector, self.at)?;
        if self.broken {
            return f.write_str("  Nothing until its mistakes are mended; see the findings.\n");
        }
        self.triggers.iter().try_for_each(|trigger| write!(f, "{trigger}"))?;
        if self.rules.is_empty() {
            return f.write_str(match self.triggers.is_empty() {
                true => "  Nothing: it has no allow rule.\n",
                false => "  No job: it has no allow rule.\n",
            });
        }
        self.rules.iter().try_for_each(|rule| write!(f, "{rule}"))?;
        if !self.never.is_empty() {
            writeln!(f, "  Never: {}", self.never.join(", "))?;
        }
        let rate = self.rate_per_minute.map_or(String::new(), |rate| format!(", {rate} started per minute"));
        writeln!(f, "  At most {} attempts at once{rate}.", self.max_concurrent)
    }
}

impl Display for RuleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  Rule {} ({}) lets the cloud", self.number, self.at)?;
        for operation in &self.operations {
            match operation.name.as_str() {
                "delete" if !self.entities.is_empty() => writeln!(f, "    delete: delete records")?,
                _ => writeln!(f, "    {operation}")?,
            }
        }
        if !self.entities.is_empty() {
            writeln!(f, "    on entities {}", self.entities.join(", "))?;
        }
        if self.fields.iter().any(|field| field == "*") {
            f.write_str("    with all the fields that the resource maps\n")?;
        } else if !self.fields.is_empty() {
            writeln!(
                f,
                "    with fields {} (it sees no others; a key finds its record)",
                self.fields.join(", ")
            )?;
        }
        if !self.calls.is_empty() {
            writeln!(f, "    with calls {}", self.calls.join(", "))?;
        }
        if !self.paths.is_empty() {
            writeln!(f, "    on paths {}", self.paths.join("  "))?;
        }
        if !self.query.is_empty() {
            writeln!(f, "    with query keys {}", self.query.join(", "))?;
        }
        if !self.headers.is_empty() {
            writeln!(f, "    with headers {}", self.headers.join(", "))?;
        }
        if !self.requests.is_empty() {
            writeln!(f, "    as its requests say: {}", self.requests.join(", "))?;
        }
        if let Some(bytes) = self.max_size {
            writeln!(f, "    up to {} each", size(bytes))?;
        }
        if let Some(attempts) = self.max_per_day {
            writeln!(f, "    at most {attempts} times a day")?;
        }
        if let Some(bytes) = self.daily_volume {
            writeln!(f, "    at most {} a day", size(bytes))?;
        }
        Ok(())
    }
}

impl Display for OperationView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}: {}", self.name, meaning(&self.name));
        if !self.methods.is_empty() {
            write!(text, " ({})", self.methods.join(", "))?;
        }
        if !self.may.is_empty() {
            let rights: Vec<&str> = self.may.iter().map(|name| right(name)).collect();
            write!(text, "; it may {}", rights.join(" and "))?;
        }
        f.write_str(&text)
    }
}
