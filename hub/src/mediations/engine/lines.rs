//! Whose turn it is: the runs of one definition go one after the other, oldest first, unless it lets them run side by side.

use crate::mediations::{ids::DefinitionId, store::OpenRun};
use passerelle_protocol::Name;
use std::collections::{BTreeSet, HashMap, VecDeque};

type Key = (Name, DefinitionId);

/// A run whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) seq: i64,
    key: Key,
}

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<i64>,
    under_way: BTreeSet<i64>,
    parallel: bool,
    /// Whether it is among the ready ones.
    ready: bool,
}

/// The lines of all definitions that have open runs.
#[derive(Debug)]
pub(super) struct Lines {
    lines: HashMap<Key, Line>,
    /// Lines of which a run may begin.
    ready: VecDeque<Key>,
    parallel: usize,
}

impl Lines {
    pub(super) fn new(parallel: usize) -> Self {
        Self { lines: HashMap::new(), ready: VecDeque::new(), parallel }
    }

    /// A run that is open; one that is known already is not added twice.
    pub(super) fn add(&mut self, run: OpenRun) {
        let key = (run.tenant, run.definition);
        let line = self.lines.entry(key.clone()).or_default();
        // The newest word counts: a definition may have changed.
        line.parallel = run.parallel;
        line.waiting.insert(run.seq);
        self.wake(&key);
    }

    fn wake(&mut self, key: &Key) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let most = if line.parallel { self.parallel } else { 1 };
        if !line.ready && line.under_way.len() < most && !line.waiting.is_empty() {
            line.ready = true;
            self.ready.push_back(key.clone());
        }
    }

    /// The next run that may begin; one line after the other.
    pub(super) fn next(&mut self) -> Option<Turn> {
        while let Some(key) = self.ready.pop_front() {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            line.ready = false;
            // One that was restarted while its task was ending waits for that end.
            let Some(seq) = line.waiting.iter().find(|seq| !line.under_way.contains(seq)).copied() else {
                continue;
            };
            line.waiting.remove(&seq);
            line.under_way.insert(seq);
            self.wake(&key);
            return Some(Turn { seq, key });
        }
        None
    }

    /// A run has come to its end, or cannot go on.
    pub(super) fn ended(&mut self, turn: &Turn) {
        if let Some(line) = self.lines.get_mut(&turn.key) {
            line.under_way.remove(&turn.seq);
            if line.under_way.is_empty() && line.waiting.is_empty() {
                self.lines.remove(&turn.key);
                return;
            }
        }
        self.wake(&turn.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(definition: DefinitionId, seq: i64, parallel: bool) -> OpenRun {
        OpenRun { seq, tenant: "acme".parse().unwrap(), definition, parallel }
    }

    fn begun(lines: &mut Lines) -> Vec<Turn> {
        std::iter::from_fn(|| lines.next()).collect()
    }

    #[test]
    fn runs_of_a_definition_take_turns_oldest_first_unless_it_lets_them_run_side_by_side() {
        let (queue, parallel) = (DefinitionId::make(), DefinitionId::make());
        let mut lines = Lines::new(2);
        for seq in [3, 1, 2] {
            lines.add(open(queue, seq, false));
            lines.add(open(parallel, seq + 10, true));
        }
        let first = begun(&mut lines);
        let seqs: Vec<i64> = first.iter().map(|turn| turn.seq).collect();
        assert_eq!(seqs, [1, 11, 12]);
        lines.ended(&first[0]);
        assert_eq!(begun(&mut lines).iter().map(|turn| turn.seq).collect::<Vec<_>>(), [2]);
        lines.ended(&first[1]);
        assert_eq!(begun(&mut lines).iter().map(|turn| turn.seq).collect::<Vec<_>>(), [13]);
        assert_eq!(begun(&mut lines), []);
    }

    #[test]
    fn a_run_that_is_restarted_while_its_task_ends_begins_after_that_end() {
        let definition = DefinitionId::make();
        let mut lines = Lines::new(2);
        lines.add(open(definition, 1, true));
        let turn = lines.next().unwrap();
        lines.add(open(definition, 1, true));
        assert_eq!(lines.next(), None);
        lines.ended(&turn);
        assert_eq!(lines.next(), Some(turn));
        assert_eq!(lines.next(), None);
    }
}
