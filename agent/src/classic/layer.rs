//! What is logged, as classic lines: the message, then `name=value` of its fields and of the spans around it.

use super::{Level, Line, Sender};
use crate::clock;
use std::fmt::{self, Write as _};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// The longest message: a line is for people.
const MAX_MESSAGE: usize = 16 * 1024;
/// An event with this field set to true is critical.
pub const CRITICAL: &str = "critical";

/// Hands every event to the classic log.
#[derive(Debug)]
pub struct ClassicLayer(Sender);

impl ClassicLayer {
    pub(super) fn new(sender: Sender) -> Self {
        Self(sender)
    }
}

/// The fields of a span, written once.
struct SpanFields(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ClassicLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields.rest));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(SpanFields(known)) = span.extensions_mut().get_mut() {
            known.push_str(&fields.rest);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut message = fields.message;
        message.push_str(&fields.rest);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(known)) = span.extensions().get() {
                message.push_str(known);
            }
        }
        let metadata = event.metadata();
        let level = match *metadata.level() {
            tracing::Level::ERROR if fields.critical => Level::Critical,
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            _ => Level::Info,
        };
        self.0.send(Line {
            at: clock::now(),
            level,
            zone: zone(metadata.target()),
            message: one_line(message),
        });
    }
}

/// The part of the program that speaks: `passerelle_agent::tunnel::session` is `tunnel`.
fn zone(target: &'static str) -> &'static str {
    let mut parts = target.split("::");
    match (parts.next(), parts.next()) {
        (Some("passerelle_agent" | "passerelle_connectors"), Some(part)) => part,
        (Some(first), _) => first,
        (None, _) => "",
    }
}

/// Without line breaks and other control characters, and not longer than a line may be.
pub(super) fn one_line(message: String) -> String {
    let mut message =
        if message.chars().any(char::is_control) { message.replace(char::is_control, " ") } else { message };
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
    }
    message
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
    critical: bool,
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == CRITICAL {
            self.critical = value;
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            let _infallible = write!(self.rest, " {}={value}", field.name());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _infallible = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.rest, " {}={value:?}", field.name())
        };
    }
}
