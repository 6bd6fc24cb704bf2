//! Simulated: each file takes its time and fails or not, and the clock goes on by that.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A resource whose files behave as `settle` says: how long a try takes, and what comes of it.
struct World {
    turns: Turns,
    begun: Instant,
    now: Instant,
    tries: Vec<i64>,
    busy: Duration,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self { turns: Turns::default(), begun: now, now, tries: Vec::new(), busy: Duration::ZERO }
    }

    fn after(&self) -> Duration {
        self.now - self.begun
    }

    /// Goes on until nothing is left or so much time has passed.
    fn run(&mut self, within: Duration, settle: impl Fn(i64) -> (Duration, Option<Target>)) {
        let end = self.now + within;
        while self.now < end {
            match self.turns.next(self.now) {
                Next::Nothing => return,
                Next::At(at) => {
                    assert!(at > self.now, "a busy loop");
                    self.now = at.min(end);
                }
                Next::File(trigger, file) => {
                    let (took, failed) = settle(file);
                    self.now += took;
                    self.busy += took;
                    self.tries.push(file);
                    match failed {
                        Some(target) => self.turns.failed(&trigger, file, target, took, self.now),
                        None => drop(self.turns.done(&trigger, file)),
                    }
                }
            }
        }
    }
}

const REFUSED: Option<Target> = Some(Target::Answers);
const DEAD: Option<Target> = Some(Target::Fails(None));

#[test]
fn a_file_that_cannot_be_put_away_holds_up_none_and_waits_longer_each_time() {
    let mut world = World::new();
    world.turns.note(&name("a"), [1, 2]);
    world.turns.note(&name("b"), [3, 4]);
    let settle = |file| (MS, REFUSED.filter(|_| file == 1));
    world.run(Duration::from_secs(1), settle);
    assert_eq!(world.tries, [1, 3, 2, 4], "the triggers take turns");
    world.run(Duration::from_secs(1999), settle);
    assert!((8..15).contains(&(world.tries.len() - 4)), "{:?}", world.tries);
    let file = |next| matches!(next, Next::File(_, 1));
    let at = (1..=301).find(|s| file(world.turns.next(world.now + Duration::from_secs(*s))));
    assert!(at.is_some(), "it is still tried");
    assert!(world.turns.done(&name("a"), 1));
    assert_eq!(world.turns.next(world.now), Next::Nothing);
}

#[test]
fn thousands_of_stuck_files_take_a_tenth_of_the_time_and_a_fresh_one_goes_at_once() {
    let mut world = World::new();
    world.turns.note(&name("a"), 1..=2000);
    let settle = |file| (100 * MS, REFUSED.filter(|_| file <= 2000));
    world.run(Duration::from_secs(250), settle);
    assert!((1..=2000).all(|file| world.tries.contains(&file)), "each has its first try");
    let (busy, tries) = (world.busy, world.tries.len());
    world.run(Duration::from_secs(1000), settle);
    assert!(world.busy - busy <= Duration::from_secs(101), "{:?}", world.busy - busy);
    let tried: BTreeSet<_> = world.tries[tries..].iter().collect();
    assert!(tried.len() > 500, "only {} of them were tried again", tried.len());
    // In the same trigger and in another one.
    let tries = world.tries.len();
    world.turns.note(&name("a"), [5001]);
    world.turns.note(&name("b"), [5002]);
    world.run(Duration::from_secs(1), settle);
    assert!(world.tries[tries..].contains(&5001) && world.tries[tries..].contains(&5002));
}

#[test]
fn a_dead_target_is_left_alone_and_all_is_put_away_when_it_is_back() {
    let mut world = World::new();
    world.turns.note(&name("a"), 1..=1000);
    world.turns.note(&name("b"), 1001..=2000);
    let minute = Duration::from_secs(60);
    world.run(120 * minute, |_| (minute, DEAD));
    assert!(world.tries.len() < 35, "{} tries of a minute each in two hours", world.tries.len());
    let tries = world.tries.len();
    world.run(11 * minute, |_| (MS, None));
    let put_away: BTreeSet<_> = world.tries[tries..].iter().collect();
    assert_eq!(put_away.len(), 2000, "after {:?}", world.after());
}

#[test]
fn one_that_never_ends_does_not_make_the_target_a_dead_one() {
    let mut world = World::new();
    let minute = Duration::from_secs(60);
    let settle = |file| (if file == 1 { minute } else { MS }, DEAD.filter(|_| file == 1));
    world.turns.note(&name("a"), [1]);
    world.run(60 * minute, settle);
    for file in 2..100 {
        world.turns.note(&name("b"), [file]);
        world.run(minute + Duration::from_secs(3), settle);
        assert!(world.tries.contains(&file), "{file} waited for the one that never ends");
    }
}

#[test]
fn a_trigger_whose_every_file_times_out_leaves_the_others_their_turns() {
    let mut world = World::new();
    let minute = Duration::from_secs(60);
    let settle = |file| (if file <= 2000 { minute } else { MS }, DEAD.filter(|_| file <= 2000));
    world.turns.note(&name("a"), 1..=2000);
    world.run(60 * minute, settle);
    world.turns.note(&name("b"), 5000..5010);
    world.run(18 * minute, settle);
    assert!((5000..5010).all(|file| world.tries.contains(&file)), "{:?}", world.tries);
}

#[test]
fn the_targets_own_hint_is_kept_to_a_limit() {
    let mut world = World::new();
    world.turns.note(&name("a"), [1, 2]);
    let Next::File(trigger, file) = world.turns.next(world.now) else { panic!("nothing to do") };
    let asked = Target::Fails(Some(Duration::from_secs(86_400)));
    world.turns.failed(&trigger, file, asked, MS, world.now);
    assert_eq!(world.turns.next(world.now), Next::At(world.now + MOST_WAIT));
}
