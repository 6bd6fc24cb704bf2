//! Which faults happen when: a timeline that follows from the seed. Each fault that lasts has its end in it too.

use crate::options::Options;
use passerelle_tests::Random;
use std::time::Duration;

/// The lease on an attempt that the hub of the run gives.
pub const LEASE: Duration = Duration::from_secs(5);

/// One step of the timeline; agents by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL.
    KillAgent(usize),
    /// Starts a killed agent.
    StartAgent(usize),
    /// SIGKILL.
    KillHub,
    /// Starts a killed hub.
    StartHub,
    /// SIGSTOP.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// Ends all of an agent's connections to the hub.
    Cut(usize),
    /// The hub's side of an agent's connections goes away, the agent's stays open.
    HalfOpen(usize),
    /// No byte moves between agent and hub.
    Stall(usize),
    /// Few bytes a second between agent and hub.
    Slow(usize),
    /// The line between agent and hub is as it should be.
    Heal(usize),
    /// What the agent's newest connection began with is sent a second time.
    Repeat(usize),
    /// Kills sshd with all its sessions and starts it again.
    RestartSsh,
    /// Ends all connections to sshd.
    CutSsh,
    /// No byte moves to or from sshd.
    StallSsh,
    /// The line to sshd is as it should be.
    HealSsh,
    /// Ends all connections to the application.
    CutApp,
    /// Fills the disk of the second agent's state.
    FillDisk,
    /// Gives the space back.
    FreeDisk,
}

/// The steps, in order of time.
pub fn timeline(options: &Options, disk: bool) -> Vec<(Duration, Action)> {
    // Another row of numbers than the jobs', so that leaving out jobs leaves the faults as they are.
    let mut random = Random::new(options.seed ^ 0x000c_4a05);
    let end = Duration::from_secs(options.seconds);
    let mut steps = Vec::new();
    let mut now = Duration::from_millis(500);
    while now < end {
        add(&mut steps, now, &mut random, options, disk);
        now += Duration::from_millis(200 + random.below(1300));
    }
    steps.retain(|(at, _)| *at < end);
    steps.sort_by_key(|(at, _)| *at);
    steps
}

fn add(
    steps: &mut Vec<(Duration, Action)>,
    at: Duration,
    random: &mut Random,
    options: &Options,
    disk: bool,
) {
    // The same numbers are drawn whatever is left out, so that the rest of the timeline stays.
    let (kind, agent) = (random.below(20), usize::from(random.below(2) == 1));
    let millis = |random: &mut Random, from, to| Duration::from_millis(from + random.below(to - from));
    let (short, long) = (millis(random, 50, 1500), millis(random, 500, 6000));
    let past_lease = LEASE + millis(random, 500, 3000);
    let mut pair = |part: &str, begin, lasts, finish| {
        if options.with(part) {
            steps.push((at, begin));
            if let Some(finish) = finish {
                steps.push((at + lasts, finish));
            }
        }
    };
    match kind {
        0..=4 => pair("kill", Action::KillAgent(agent), short, Some(Action::StartAgent(agent))),
        5 | 6 => pair("hub", Action::KillHub, short, Some(Action::StartHub)),
        7 | 8 => pair("freeze", Action::Freeze(agent), past_lease, Some(Action::Thaw(agent))),
        9 | 10 => pair("tunnel", Action::Cut(agent), short, None),
        11 => pair("tunnel", Action::HalfOpen(agent), short, None),
        12 => pair("tunnel", Action::Stall(agent), long, Some(Action::Heal(agent))),
        13 => pair("tunnel", Action::Slow(agent), long, Some(Action::Heal(agent))),
        14 => pair("tunnel", Action::Repeat(agent), short, None),
        15 | 16 => pair("ssh", Action::RestartSsh, short, None),
        17 => pair("ssh", Action::CutSsh, short, None),
        18 if short < Duration::from_millis(700) => {
            pair("ssh", Action::StallSsh, long, Some(Action::HealSsh));
        }
        18 => pair("app", Action::CutApp, short, None),
        _ if disk => pair("disk", Action::FillDisk, long, Some(Action::FreeDisk)),
        _ => pair("app", Action::CutApp, short, None),
    }
}
