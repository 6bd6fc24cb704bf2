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
    let mut input = io::stdin().lock();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut expressions = None;
    while let Some((_, body)) = frames::read(&mut input)? {
        // In whole seconds: the one that has begun does not count.
        let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
        bound(Resource::Cpu, used + 1 + size.computing.as_secs())?;
        match &expressions {
            Some(expressions) => values(expressions, body, &mut out)?,
            None => expressions = answer(body, &mut out)?,
        }
        out.flush()?;
    }
    Ok(())
}

fn bound(resource: Resource, to: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = maximum.map_or(to, |maximum| maximum.min(to));
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum })?)
}

type Out<'o> = BufWriter<StdoutLock<'o>>;

/// Answers a request; gives the expressions that it brought.
fn answer(body: Vec<u8>, out: &mut Out<'_>) -> io::Result<Option<Expressions>> {
    let request = serde_json::from_slice::<Request<'_, Value>>(&body)?;
    drop(body);
    match request {
        Request::Fill { names, items, wanted } => {
            let filled: Vec<Filled> =
                items.into_iter().map(|item| fill(&wanted, &merge_maps([item, names.clone()]))).collect();
            done(out, &filled)?;
        }
        Request::Render { template, names } => {
            let rendered = rendering::render(&template, names, &mut |text| {
                frames::write(out, Kind::Text, text.as_bytes())
            });
            match rendered {
                Ok(()) => done(out, &())?,
                Err(why) => frames::write(out, Kind::Unfit, why.as_bytes())?,
            }
        }
        Request::Expressions(sources) => match Expressions::new(&sources) {
            Ok(expressions) => {
                done(out, &())?;
                return Ok(Some(expressions));
            }
            Err(why) => frames::write(out, Kind::Unfit, why.as_bytes())?,
        },
    }
    Ok(None)
}

fn fill(wanted: &[Wanted], names: &Value) -> Filled {
    wanted.iter().enumerate().map(|(at, one)| template::fill(one, names).map_err(|why| (at, why))).collect()
}

/// The expressions' values for records: as many as were made, and why it is not all of them.
fn values(expressions: &Expressions, body: Vec<u8>, out: &mut Out<'_>) -> io::Result<()> {
    let records = serde_json::from_slice::<Vec<Value>>(&body)?;
    drop(body);
    let (mut made, mut unfit) = (Vec::with_capacity(records.len()), None);
    for record in records {
        match expressions.of(record) {
            Ok(values) => made.push(values),
            Err(why) => {
                unfit = Some(why);
                break;
            }
        }
    }
    done(out, &(made, unfit))
}

fn done(out: &mut Out<'_>, answer: &impl Serialize) -> io::Result<()> {
    frames::write(out, Kind::Done, &serde_json::to_vec(answer)?)
}
