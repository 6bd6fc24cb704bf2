//! Reports that were just committed, so that the feed of the session need not read them back: a copy of the newest rows,
//! in the order of their numbers. Whoever finds a gap reads the journal.

use passerelle_protocol::Report;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, futures::Notified};

/// How many are kept.
const KEPT: usize = 256;
/// Longer reports are read from the journal, as text in bytes.
pub(super) const MAX_KEPT: usize = 16 * 1024;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Fresh {
    reports: Mutex<VecDeque<(i64, Arc<Report>)>>,
    filled: Notify,
}

impl Fresh {
    fn reports(&self) -> MutexGuard<'_, VecDeque<(i64, Arc<Report>)>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a report that is committed; `None` if it is too long to be kept. In the order of the numbers.
    pub(super) fn push(&self, seq: i64, report: Option<Arc<Report>>) {
        let mut reports = self.reports();
        match report {
            Some(report) if reports.back().is_none_or(|(last, _)| last + 1 == seq) => {
                if reports.len() >= KEPT {
                    reports.pop_front();
                }
                reports.push_back((seq, report));
            }
            Some(report) => *reports = VecDeque::from([(seq, report)]),
            None => reports.clear(),
        }
        drop(reports);
        self.filled.notify_waiters();
    }

    /// Those right after `seq`, at most `limit`; none if there is a gap.
    pub(super) fn after(&self, seq: i64, limit: usize) -> Vec<(i64, Arc<Report>)> {
        let reports = self.reports();
        let first = reports.front().map_or(i64::MAX, |(first, _)| *first);
        let Ok(skip) = usize::try_from(seq.saturating_add(1).saturating_sub(first)) else {
            return Vec::new();
        };
        reports.iter().skip(skip).take(limit).cloned().collect()
    }

    /// Waits until there is another one, from this call on.
    pub(super) fn filled(&self) -> Notified<'_> {
        self.filled.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::{JobId, Outcome};

    fn report(n: u8) -> Option<Arc<Report>> {
        Some(Arc::new(Report {
            job: JobId::new(1, &[n; 10]),
            attempt: 1,
            outcome: Outcome::Succeeded { result: serde_json::json!({}), output: None, receipt: None },
            started_at: None,
            finished_at: crate::clock::now(),
        }))
    }

    #[test]
    fn only_what_follows_without_a_gap_is_given() {
        let fresh = Fresh::default();
        let after = |seq| fresh.after(seq, 10).into_iter().map(|(seq, _)| seq).collect::<Vec<_>>();
        assert_eq!(after(0), [] as [i64; 0]);
        for seq in 3..=5 {
            fresh.push(seq, report(1));
        }
        assert_eq!(
            (after(1), after(2), after(4), after(5), after(9)),
            (vec![], vec![3, 4, 5], vec![5], vec![], vec![])
        );
        // Number 6 came another way.
        fresh.push(7, report(2));
        assert_eq!((after(5), after(6)), (vec![], vec![7]));
        fresh.push(8, None);
        assert_eq!((after(6), after(7)), (vec![], vec![]));
        for seq in 0..1000 {
            fresh.push(seq, report(3));
        }
        assert_eq!(
            (fresh.after(998, 10).len(), fresh.after(999 - KEPT as i64, 1000).len(), after(10).len()),
            (1, KEPT, 0)
        );
    }
}
