//! Logs to standard error, as text for people or one JSON object per line. Never payloads or secrets; names of
//! customers' things (paths, URLs) at debug only.

use crate::{classic::ClassicLogs, exit::Stop};
use passerelle_config::{LogFormat, LogSection};
use std::io::IsTerminal as _;
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Changes what is logged while the agent runs.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Logs by the level of this section from now on.
    pub fn set(&self, section: &LogSection) -> Result<(), Stop> {
        let changed = self.0.reload(filter(section)?);
        changed
            .map_err(|e| Stop::Failed(format!("log.level: it cannot be changed now: {e}: restart the agent")))
    }
}

/// What is logged to. Dropped at the end of the process, when the last lines have been written.
#[derive(Debug)]
pub struct Logs {
    /// Changes what is logged.
    pub level: LogLevel,
    classic: Option<ClassicLogs>,
}

impl Logs {
    /// Notes why the process ends by itself, where standard error is not all that operators look at: there the command
    /// line says it.
    pub fn ended<T>(&self, result: &Result<T, Stop>) {
        if let (Err(stop), Some(classic)) = (result, &self.classic) {
            classic.critical("agent", &stop.to_string());
        }
    }
}

/// Starts logging. A second call in one process changes nothing.
pub fn start(section: &LogSection) -> Result<Logs, Stop> {
    let (filter, handle) = reload::Layer::new(filter(section)?);
    let (classic, layer) = section.classic.as_ref().map(ClassicLogs::start).transpose()?.unzip();
    let registry = tracing_subscriber::registry().with(filter).with(layer);
    let started = match section.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false))
                .try_init()
        }
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_target(false))
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("Logging was started before");
    }
    Ok(Logs { level: LogLevel(handle), classic })
}

fn filter(section: &LogSection) -> Result<EnvFilter, Stop> {
    // A plain level is about our own words; libraries speak up from warnings on (at debug some tell of every request).
    let level = section.level.trim();
    let directives = match level.parse::<tracing::Level>() {
        Ok(_) => {
            format!("warn,passerelle_agent={level},passerelle_connectors={level},passerelle_config={level}")
        }
        Err(_) => level.to_owned(),
    };
    EnvFilter::builder().parse(directives).map_err(|e| {
        Stop::Configuration(format!("log.level: {e}: expected error, warn, info, debug, trace or a filter"))
    })
}
