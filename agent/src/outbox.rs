//! What the rest of the agent wants to tell the hub, whatever connection there is.
//!
//! Bounded by construction: one answer per offer that is open, one progress and one commit request per attempt.
//! Answers and progress may be lost with a connection (the hub learns the same from the next `Hello`); commit
//! requests stay until granted or withdrawn and are sent again on each connection.

use passerelle_protocol::{
    CallDeclined, CallResult, Decline, Intent, Name, Progress, TriggerCursor, session::Attempt,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, oneshot};

/// Answers that wait while no connection takes them; older ones are dropped first.
const MAX_ANSWERS: usize = 4096;

/// The answer to an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is in the journal.
    Accept(Attempt),
    /// It was not taken.
    Decline(Decline),
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallAnswer {
    /// It was carried out, or not allowed.
    Ended(CallResult),
    /// It was not taken.
    Declined(CallDeclined),
}

/// What the session is to send next.
#[derive(Debug, Default)]
pub struct Batch {
    /// Answers to offers.
    pub answers: Vec<Answer>,
    /// Latest progress of attempts.
    pub progress: Vec<Progress>,
    /// Commit requests that this connection has not sent yet.
    pub asks: Vec<(Attempt, Intent)>,
    /// How far change feeds were read.
    pub cursors: Vec<TriggerCursor>,
    /// Seconds of grace, once the agent drains.
    pub draining: Option<u32>,
}

struct Ask {
    intent: Intent,
    sent: bool,
    granted: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Inner {
    answers: VecDeque<Answer>,
    progress: BTreeMap<Attempt, Progress>,
    asks: BTreeMap<Attempt, Ask>,
    /// Of calls of the connection: bounded by how many it may have.
    calls: VecDeque<CallAnswer>,
    /// By resource and trigger, of which there are few.
    cursors: BTreeMap<(Name, Name), TriggerCursor>,
    draining: Option<u32>,
}

/// See the [module](self).
#[derive(Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    filled: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.filled.notify_one();
    }

    /// Answers an offer.
    pub fn answer(&self, answer: Answer) {
        self.put(|inner| {
            if inner.answers.len() >= MAX_ANSWERS {
                inner.answers.pop_front();
            }
            // A session that did not know the attempt has ignored what was asked for it.
            if let Answer::Accept(attempt) = &answer
                && let Some(ask) = inner.asks.get_mut(attempt)
            {
                ask.sent = false;
            }
            inner.answers.push_back(answer);
        });
    }

    /// Answers a call.
    pub fn answer_call(&self, answer: CallAnswer) {
        self.put(|inner| inner.calls.push_back(answer));
    }

    /// The next answer to a call.
    pub fn next_call_answer(&self) -> Option<CallAnswer> {
        self.lock().calls.pop_front()
    }

    /// Tells how far an attempt is; replaces what was not sent yet.
    pub fn progress(&self, progress: Progress) {
        let attempt = Attempt::new(progress.job, progress.attempt);
        self.put(|inner| {
            inner.progress.insert(attempt, progress);
        });
    }

    /// Asks for the right to the final effect; the receiver hears of the grant.
    pub fn ask(&self, attempt: Attempt, intent: Intent) -> oneshot::Receiver<()> {
        let (granted, wait) = oneshot::channel();
        self.put(|inner| {
            inner.asks.insert(attempt, Ask { intent, sent: false, granted: Some(granted) });
        });
        wait
    }

    /// The hub granted it.
    pub fn granted(&self, attempt: Attempt) {
        if let Some(Ask { granted: Some(granted), .. }) = self.lock().asks.remove(&attempt) {
            // The attempt may have ended meanwhile; then nobody waits.
            let _ = granted.send(());
        }
    }

    /// The attempt ended: nothing about it is to be sent any more.
    pub fn forget(&self, attempt: Attempt) {
        let mut inner = self.lock();
        inner.progress.remove(&attempt);
        inner.asks.remove(&attempt);
    }

    /// Tells how far a change feed was read; replaces what was not sent yet.
    pub fn cursor(&self, cursor: TriggerCursor) {
        let key = (cursor.resource.clone(), cursor.trigger.clone());
        self.put(|inner| {
            inner.cursors.insert(key, cursor);
        });
    }

    /// The agent drains.
    pub fn drain(&self, grace_s: u32) {
        self.put(|inner| inner.draining = Some(grace_s));
    }

    /// A new connection is open: what belonged to the old one is void, what must be asked is asked again.
    pub fn reconnected(&self) {
        self.put(|inner| {
            inner.answers.clear();
            inner.calls.clear();
            inner.asks.values_mut().for_each(|ask| ask.sent = false);
        });
    }

    /// Takes what is to be sent now.
    pub fn take(&self) -> Batch {
        let mut inner = self.lock();
        let answers = inner.answers.drain(..).collect();
        let progress = std::mem::take(&mut inner.progress).into_values().collect();
        let asks = inner
            .asks
            .iter_mut()
            .filter_map(|(attempt, ask)| {
                let first = !std::mem::replace(&mut ask.sent, true);
                first.then(|| (*attempt, ask.intent.clone()))
            })
            .collect();
        let cursors = std::mem::take(&mut inner.cursors).into_values().collect();
        Batch { answers, progress, asks, cursors, draining: inner.draining }
    }

    /// How much waits to be sent.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.answers.len()
            + inner.calls.len()
            + inner.progress.len()
            + inner.asks.values().filter(|ask| !ask.sent).count()
    }

    /// Waits until there may be something to take.
    ///
    /// # Cancel safety
    /// Cancel safe: a notification that was not waited for is kept.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::JobId;

    fn attempt(n: u32) -> Attempt {
        Attempt::new(JobId::new(1, &[1; 10]), n)
    }

    const INTENT: Intent = Intent { part: None, target: None, size: None, sha256: None, state: None };

    #[tokio::test]
    async fn a_commit_request_is_sent_once_per_connection_until_granted() {
        let outbox = Outbox::default();
        let granted = outbox.ask(attempt(1), INTENT);
        outbox.filled().await;
        assert_eq!(outbox.take().asks.len(), 1);
        assert_eq!(outbox.take().asks.len(), 0);
        outbox.reconnected();
        assert_eq!(outbox.take().asks.len(), 1);
        outbox.granted(attempt(1));
        granted.await.unwrap();
        outbox.reconnected();
        assert_eq!(outbox.take().asks.len(), 0);
    }

    #[test]
    fn answers_of_an_old_connection_are_void_and_bounded() {
        let outbox = Outbox::default();
        outbox.answer(Answer::Accept(attempt(1)));
        outbox.reconnected();
        assert_eq!(outbox.take().answers, vec![]);
        for n in 0..=u32::try_from(MAX_ANSWERS).unwrap() {
            outbox.answer(Answer::Accept(attempt(n + 1)));
        }
        assert_eq!(outbox.take().answers.len(), MAX_ANSWERS);
    }

    #[tokio::test]
    async fn a_withdrawn_request_ends_the_wait() {
        let outbox = Outbox::default();
        let granted = outbox.ask(attempt(1), INTENT);
        outbox.forget(attempt(1));
        granted.await.unwrap_err();
    }
}
