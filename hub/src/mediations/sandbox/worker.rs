//! The worker's side: a process that fills templates for a hub, and for nothing else.
//!
//! It has no secrets (its environment is empty), takes no more memory and computes no longer than it is allowed, and ends
//! with the hub's end of its standard input. What a template does to it, it does to this process alone.

use super::{
    frames::{self, Filled, Kind, Request},
    size::Size,
};
use crate::mediations::{
    rendering::{self, Expressions},
    template::{self, Wanted},
};
use minijinja::{Value, value::merge_maps};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use serde::Serialize;
use std::{
    io::{self, BufWriter, StdoutLock, Write as _},
    process::ExitCode,
};

/// The worker could not bound itself, or lost the hub in the middle of a message.
const EXIT_FAULT: u8 = 70;
/// How much a worker gives way to its hub (nice(2)).
const NICE: i32 = 5;

/// Works until the hub closes the pipe.
pub(super) fn run(size: Option<Size>) -> ExitCode {
    match size.map(serve) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(_)) | None => ExitCode::from(EXIT_FAULT),
    }
}

fn serve(size: Size) -> io::Result<()> {
    // What runs is called `exe` otherwise. Nothing depends on the name.
    let _ = rustix::thread::set_name(c"hub-templates");
    // Where memory is short, this process is the one to end. It may not be allowed to say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    bound(Resource::Core, 0)?;
    bound(Resource::As, size.memory)?;
    // The hub comes first. Not every system lets a process say so.
    let _ = rustix::process::nice(NICE);
    let mut input = io::stdin().lock();
    let mut out =
        Out { pipe: BufWriter::new(io::stdout().lock()), size, began: memory().unwrap_or(0), ends: false };
    let mut expressions = None;
    while let Some((_, body)) = frames::read(&mut input)? {
        // In whole seconds: the one that has begun does not count.
        let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
        bound(Resource::Cpu, used + 1 + size.computing.as_secs())?;
        match &expressions {
            Some(expressions) => values(expressions, body, &mut out)?,
            None => expressions = answer(body, &mut out)?,
        }
        out.pipe.flush()?;
        // One with expressions belongs to one step, and ends with it.
        if out.ends && expressions.is_none() {
            break;
        }
    }
    Ok(())
}

fn bound(resource: Resource, to: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = maximum.map_or(to, |maximum| maximum.min(to));
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum })?)
}

/// Answers a request; gives the expressions that it brought.
fn answer(body: Vec<u8>, out: &mut Out<'_>) -> io::Result<Option<Expressions>> {
    let request = match serde_json::from_slice::<Request<'_, Value>>(&body) {
        Ok(request) => request,
        Err(_) => return out.unreadable().map(|()| None),
    };
    drop(body);
    match request {
        Request::Fill { names, items, wanted } => {
            let filled: Vec<Filled> =
                items.into_iter().map(|item| fill(&wanted, &merge_maps([item, names.clone()]))).collect();
            out.done(&filled)?;
        }
        Request::Render { template, names } => {
            let rendered = rendering::render(&template, names, &mut |text| {
                frames::write(&mut out.pipe, Kind::Text, text.as_bytes())
            });
            match rendered {
                Ok(()) => out.done(&())?,
                Err(why) => out.unfit(&why)?,
            }
        }
        Request::Expressions(sources) => match Expressions::new(&sources) {
            Ok(expressions) => {
                out.done(&())?;
                return Ok(Some(expressions));
            }
            Err(why) => out.unfit(&why)?,
        },
        Request::Check(sources) => {
            let found: Vec<_> = sources.iter().map(|source| template::findings(source)).collect();
            out.done(&found)?;
        }
    }
    Ok(None)
}

fn fill(wanted: &[Wanted], names: &Value) -> Filled {
    wanted.iter().enumerate().map(|(at, one)| template::fill(one, names).map_err(|why| (at, why))).collect()
}

/// The expressions' values for records, as many as one answer takes, and why those of the next one are not there.
fn values(expressions: &Expressions, body: Vec<u8>, out: &mut Out<'_>) -> io::Result<()> {
    let records = match serde_json::from_slice::<Vec<Value>>(&body) {
        Ok(records) => records,
        Err(_) => return out.unreadable(),
    };
    drop(body);
    let (mut made, mut length) = (Vec::new(), 0);
    for record in records {
        match expressions.of(record) {
            Ok((values, bytes)) => {
                length += bytes;
                made.push(values);
            }
            Err(why) => return out.done(&(made, Some(why))),
        }
        if length >= frames::PIECE {
            break;
        }
    }
    out.done(&(made, None::<(usize, String)>))
}

/// What goes back to the hub.
struct Out<'o> {
    pipe: BufWriter<StdoutLock<'o>>,
    size: Size,
    /// Its memory at the beginning.
    began: u64,
    ends: bool,
}

impl Out<'_> {
    /// The end of an answer. Memory is not given back whole: a worker that has grown by half of its room is not kept.
    fn done(&mut self, answer: &impl Serialize) -> io::Result<()> {
        let body = serde_json::to_vec(answer)?;
        let room = self.size.memory.saturating_sub(self.began);
        self.ends = memory().is_none_or(|now| now > self.began + room / 2);
        let kind = if self.ends { Kind::Last } else { Kind::Done };
        frames::write(&mut self.pipe, kind, &body)
    }

    fn unfit(&mut self, why: &str) -> io::Result<()> {
        frames::write(&mut self.pipe, Kind::Unfit, why.as_bytes())
    }

    /// What the hub has written itself is unreadable for one reason: it is nested deeper than a reader goes.
    fn unreadable(&mut self) -> io::Result<()> {
        self.unfit("the values that the templates see are nested too deeply")
    }
}

/// The address space of this process, in bytes.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let of = |line: &str| line.strip_prefix("VmSize:")?.split_whitespace().next()?.parse::<u64>().ok();
    Some(status.lines().find_map(of)?.saturating_mul(1024))
}
