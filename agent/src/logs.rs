//! Logs to standard error, as text for people or one JSON object per line. Never payloads or secrets; names of
//! customers' things (paths, URLs) at debug only.

use crate::exit::Stop;
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

/// Starts logging. A second call in one process changes nothing.
pub fn start(section: &LogSection) -> Result<LogLevel, Stop> {
    let (filter, handle) = reload::Layer::new(filter(section)?);
    let registry = tracing_subscriber::registry().with(filter);
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
    Ok(LogLevel(handle))
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
