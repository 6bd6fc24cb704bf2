//! One file on its way out: recognised, set aside, looked at, and gone; or found as an earlier run left it.

use super::{
    After, Call, EntryKind, Existing, Failure, Fingerprint, Followed, FsError, Intent, Lease, Links, Outcome,
    Place, Pool, Problem, Read, Stat, fetch, has_content, look, of_another_job, plain, put_back, state,
};
use crate::Produced;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const OPERATION: &str = "fetch";
/// The longest name of a version that is kept: intents are bounded.
const MAX_TAG: usize = 256;

/// What the connector keeps in the intent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ThenState {
    /// Always `fetch`.
    operation: String,
    file: Fingerprint,
    /// What the target calls the version of the content that was read.
    tag: Option<String>,
    media_type: String,
}

/// Where an attempt stopped.
enum Stopped {
    /// The file is where it was, or where somebody else put it.
    Before(Failure),
    /// It may be on its way.
    InEffect(Failure),
}

impl<E: Into<Failure>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

/// After the effect has begun: only what is known to have changed nothing leaves things as they were.
fn in_effect(error: FsError) -> Stopped {
    Stopped::InEffect(Failure::from(error).effect_unknown())
}

fn unknown(error: FsError) -> Failure {
    Failure::from(error).effect_unknown()
}

/// What is where.
struct Found {
    hidden: Option<Stat>,
    place: Option<Stat>,
    /// At the new place of a move.
    target: Option<Stat>,
}

/// One file on its way out.
pub(super) struct Taking<'a> {
    call: &'a Call,
    place: Place,
    after: After,
    hidden: Place,
    intent: Intent,
    file: Fingerprint,
    tag: Option<String>,
    sha256: [u8; 32],
}

impl<'a> Taking<'a> {
    /// Of a file that was read just now.
    pub(super) fn new(
        call: &'a Call,
        place: Place,
        after: After,
        hidden: Place,
        (stat, read): (Stat, Read),
    ) -> Self {
        let Read { produced: Produced { size, sha256, media_type }, modified: _, tag } = read;
        let tag = tag.filter(|tag| tag.len() <= MAX_TAG);
        let file = Fingerprint::from(stat);
        let state =
            ThenState { operation: OPERATION.to_owned(), file: file.clone(), tag: tag.clone(), media_type };
        let intent = Intent {
            part: Some(hidden.to_string()),
            target: Some(target(&place, &after).to_string()),
            size: Some(size),
            sha256: Some(sha256),
            state: json!(state),
        };
        Self { call, place, after, hidden, intent, file, tag, sha256 }
    }

    /// Of one that an earlier attempt read. The intent may be the hub's word for what another agent was granted: whatever
    /// this job could not have chosen by its own parameters, which the policy has allowed, is refused.
    pub(super) fn again(
        call: &'a Call,
        place: Place,
        after: After,
        hidden: Place,
        intent: &Intent,
    ) -> Result<(Self, Produced), Failure> {
        let ThenState { operation, file, tag, media_type } = state(intent)?;
        let own = operation == OPERATION
            && intent.part.as_deref() == Some(hidden.as_str())
            && intent.target.as_deref() == Some(target(&place, &after).as_str());
        let (true, Some(size), Some(sha256)) = (own, intent.size, intent.sha256) else {
            return Err(of_another_job());
        };
        let produced = Produced { size, sha256, media_type };
        Ok((Self { call, place, after, hidden, intent: intent.clone(), file, tag, sha256 }, produced))
    }

    /// Takes the file away, in a run that has read it.
    pub(super) async fn begin(&self, pool: &Pool) -> Result<Followed, Failure> {
        let mut lease = pool.lease_for(self.call).await?;
        let taken = self.take(&mut lease).await;
        lease.release().await;
        match taken {
            Ok(followed) => Ok(followed),
            Err(Stopped::Before(failure)) => Err(failure),
            // What is there now tells what happened.
            Err(Stopped::InEffect(failure)) => self.look_back(pool).await.map_err(|second| {
                let detail = format!("{failure}; then, when looking again: {second}");
                second.detail(detail)
            }),
        }
    }

    /// Decides what an earlier run did, and does what it did not.
    pub(super) async fn look_back(&self, pool: &Pool) -> Result<Followed, Failure> {
        // Until it is known what the earlier run did, no failure may say that nothing was done: so cancelling does not
        // keep from looking either.
        let looking = Call { cancel: CancellationToken::new(), ..self.call.clone() };
        let mut lease = pool.lease_for(&looking).await.map_err(Failure::effect_unknown)?;
        let decided = self.decide(&mut lease).await;
        lease.release().await;
        decided.map_err(|stopped| match stopped {
            Stopped::Before(failure) | Stopped::InEffect(failure) => failure,
        })
    }

    async fn decide(&self, lease: &mut Lease) -> Result<Followed, Stopped> {
        let found = self.look(lease).await.map_err(unknown)?;
        self.call.progress.beat();
        let Some(hidden) = found.hidden else { return self.decide_by_place(lease, found).await };
        // What has begun is brought to its end: cancelling comes too late.
        if !self.call.cancel.is_cancelled() {
            self.call.gate.pass(&self.intent).await.map_err(Failure::effect_unknown)?;
        }
        lease.commit();
        // Renaming is a link and an unlink on some targets: cut off between the two, it left the file under both names.
        if let Some(place) = found.place
            && self.is_it(hidden)
            && self.is_it(place)
            && self.is_one(lease, hidden, (&self.place, place)).await.map_err(in_effect)?
        {
            self.remove(lease, &self.place).await.map_err(in_effect)?;
        }
        let moved = match (&self.after, found.target) {
            (After::MoveTo(to), Some(target)) if self.is_it(target) => {
                self.is_one(lease, hidden, (to, target)).await.map_err(in_effect)?
            }
            (After::MoveTo(_) | After::Delete, _) => false,
        };
        if moved {
            self.remove(lease, &self.hidden).await.map_err(in_effect)?;
            return Ok(Followed::Moved);
        }
        self.dispose(lease).await
    }

    /// Nothing is set aside: nothing was done yet, or all of it.
    async fn decide_by_place(&self, lease: &mut Lease, found: Found) -> Result<Followed, Stopped> {
        let arrived = self.has_arrived(lease, found.target).await.map_err(unknown)?;
        match found.place {
            Some(place) if self.is_it(place) => {
                // Where a rename is a copy and a deletion, cut off between the two.
                if arrived && !self.renames(lease).await.map_err(unknown)? {
                    self.call.gate.pass(&self.intent).await.map_err(Failure::effect_unknown)?;
                    lease.commit();
                    self.remove(lease, &self.place).await.map_err(in_effect)?;
                    return Ok(Followed::Moved);
                }
                if self.call.cancel.is_cancelled() {
                    // Not begun, and not any more.
                    self.call.gate.withdraw().await?;
                    return Err(Failure::cancelled().into());
                }
                self.take(lease).await
            }
            _ if arrived => Ok(Followed::Moved),
            Some(_) => Ok(Followed::Changed),
            None => match self.after {
                After::Delete => Ok(Followed::Deleted),
                After::MoveTo(_) => Ok(Followed::Gone),
            },
        }
    }

    /// Asks the gate, unless the file is no longer there, and takes it away.
    async fn take(&self, lease: &mut Lease) -> Result<Followed, Stopped> {
        let found = self.look(lease).await?;
        match found.place {
            None => return Ok(Followed::Gone),
            Some(place) if !self.is_it(place) => return Ok(Followed::Changed),
            Some(_) => {}
        }
        if self.tag.is_some() && self.tag_of(lease, &self.place).await? != self.tag {
            return Ok(Followed::Changed);
        }
        if let (After::MoveTo(to), Some(_)) = (&self.after, found.target) {
            return Err(FsError::new(Problem::Exists, to).into());
        }
        self.call.gate.pass(&self.intent).await?;
        lease.commit();
        if !self.renames(lease).await? {
            return self.take_at_once(lease).await;
        }
        let (from, to) = (self.place.clone(), self.hidden.clone());
        let aside = lease.run(move |hands| hands.fs.rename(&from, &to, Existing::Refuse)).await;
        match aside {
            Ok(_) => self.dispose(lease).await,
            Err(error) if error.is_broken() => Err(in_effect(error)),
            Err(error) => self.after_refusal(lease, error).await,
        }
    }

    /// A refusal is believed only if the file is still at its place and nowhere else: its content may have no other copy than
    /// what was read.
    async fn after_refusal(&self, lease: &mut Lease, error: FsError) -> Result<Followed, Stopped> {
        let found = match self.look(lease).await {
            Ok(found) => found,
            Err(second) if second.is_broken() => return Err(in_effect(second)),
            // A target that refuses even the look is believed.
            Err(_) => return Err(error.into()),
        };
        let arrived = self.has_arrived(lease, found.target).await.map_err(in_effect)?;
        match (found.hidden, found.place) {
            // What is there now tells how to go on.
            (Some(_), _) => Err(in_effect(error)),
            (None, Some(place)) if self.is_it(place) && !arrived => Err(error.into()),
            // Where a move is a copy and a deletion: nobody may say that nothing was done.
            (None, Some(place)) if self.is_it(place) => Err(in_effect(error)),
            (None, _) if arrived => Ok(Followed::Moved),
            (None, Some(_)) => Ok(Followed::Changed),
            (None, None) if error.problem == Problem::NotFound => Ok(Followed::Gone),
            (None, None) => match self.after {
                After::Delete => Ok(Followed::Deleted),
                After::MoveTo(_) => Ok(Followed::Gone),
            },
        }
    }

    /// Where a renamed file is not known again, the look right before has to do.
    async fn take_at_once(&self, lease: &mut Lease) -> Result<Followed, Stopped> {
        let done = match &self.after {
            After::Delete => self.remove(lease, &self.place).await.map(|()| Followed::Deleted),
            After::MoveTo(to) => self.name(lease, &self.place, to).await.map(|()| Followed::Moved),
        };
        match done {
            Ok(followed) => Ok(followed),
            Err(error) if error.is_broken() => Err(in_effect(error)),
            Err(error) => self.after_refusal(lease, error).await,
        }
    }

    /// Looks at what was set aside, and deletes it or gives it its new name; puts it back if it is another file, or if that
    /// fails.
    async fn dispose(&self, lease: &mut Lease) -> Result<Followed, Stopped> {
        let hidden = self.hidden.clone();
        let found = lease.run(move |hands| look(hands.fs.as_mut(), &hidden, Links::Keep)).await;
        let Some(found) = found.map_err(in_effect)? else {
            // Another agent that was granted it before was quicker.
            return Ok(match self.after {
                After::Delete => Followed::Deleted,
                After::MoveTo(_) => Followed::Gone,
            });
        };
        if !self.is_known_again(lease, found).await.map_err(in_effect)? {
            self.put_back(lease).await?;
            return Ok(Followed::Changed);
        }
        let done = match &self.after {
            After::Delete => self.remove(lease, &self.hidden).await.map(|()| Followed::Deleted),
            After::MoveTo(to) => self.name(lease, &self.hidden, to).await.map(|()| Followed::Moved),
        };
        match done {
            Ok(followed) => Ok(followed),
            Err(error) if error.is_broken() => Err(in_effect(error)),
            // Nothing is left to put back where it was done though it was refused.
            Err(error) => match self.put_back(lease).await? {
                true => Err(error.into()),
                false => self.after_refusal(lease, error).await,
            },
        }
    }

    /// Whether there was anything to put back.
    async fn put_back(&self, lease: &mut Lease) -> Result<bool, Stopped> {
        let (hidden, place) = (self.hidden.clone(), self.place.clone());
        let back = lease.run(move |hands| put_back(hands.fs.as_mut(), &hidden, &place)).await;
        back.map_err(in_effect)
    }

    async fn remove(&self, lease: &mut Lease, place: &Place) -> Result<(), FsError> {
        let place = place.clone();
        let removed = lease.run(move |hands| {
            hands.fs.delete(&place)?;
            // The effect has happened: a folder that cannot be synced does not undo it.
            drop(hands.fs.sync_folder(place.folder()));
            Ok(())
        });
        removed.await
    }

    async fn name(&self, lease: &mut Lease, from: &Place, to: &Place) -> Result<(), FsError> {
        let (from, to) = (from.clone(), to.clone());
        let named = lease.run(move |hands| {
            hands.fs.rename(&from, &to, Existing::Refuse)?;
            drop(hands.fs.sync_folder(to.folder()));
            drop(hands.fs.sync_folder(from.folder()));
            Ok(())
        });
        named.await
    }

    async fn look(&self, lease: &mut Lease) -> Result<Found, FsError> {
        let (hidden, place) = (self.hidden.clone(), self.place.clone());
        let target = match &self.after {
            After::Delete => None,
            After::MoveTo(to) => Some(to.clone()),
        };
        let found = lease.run(move |hands| {
            let fs = hands.fs.as_mut();
            let target = target.map(|target| look(fs, &target, Links::Keep)).transpose()?.flatten();
            let (hidden, place) = (look(fs, &hidden, Links::Keep)?, look(fs, &place, Links::Keep)?);
            Ok(Found { hidden, place, target })
        });
        found.await
    }

    async fn renames(&self, lease: &mut Lease) -> Result<bool, FsError> {
        lease.run(|hands| Ok(hands.fs.renames_keep_files())).await
    }

    async fn tag_of(&self, lease: &mut Lease, place: &Place) -> Result<Option<String>, FsError> {
        let place = place.clone();
        lease.run(move |hands| hands.fs.tag(&place)).await
    }

    fn is_it(&self, stat: Stat) -> bool {
        stat.kind == EntryKind::File && self.file.matches(stat)
    }

    /// Whether what was set aside is what was read. Where neither inode nor time proves it, its version or its content does.
    async fn is_known_again(&self, lease: &mut Lease, stat: Stat) -> Result<bool, FsError> {
        let others = |number: u64| stat.inode.is_some_and(|(_, there)| there != number);
        let is_other = self.file.inode.is_some_and(|(_, number)| others(number));
        if stat.kind != EntryKind::File || Some(stat.size) != self.intent.size || is_other {
            return Ok(false);
        }
        if self.is_it(stat) && (self.file.modified.is_some() || self.file.inode.is_some()) {
            return Ok(true);
        }
        if self.tag.is_some() && self.tag_of(lease, &self.hidden).await? == self.tag {
            return Ok(true);
        }
        has_content(lease, self.call, &self.hidden, self.sha256).await
    }

    /// Whether the file is at its new place. A copy is known by its content alone.
    async fn has_arrived(&self, lease: &mut Lease, target: Option<Stat>) -> Result<bool, FsError> {
        match (&self.after, target) {
            (After::MoveTo(_), Some(target)) if self.is_it(target) => Ok(true),
            (After::MoveTo(to), Some(target)) if Some(target.size) == self.intent.size => {
                Ok(!self.renames(lease).await? && has_content(lease, self.call, to, self.sha256).await?)
            }
            (After::MoveTo(_) | After::Delete, _) => Ok(false),
        }
    }

    /// Whether two names are of one file, cut off on its way from one to the other; where that does not show, of the same
    /// content: then nothing is lost with one of them.
    async fn is_one(
        &self,
        lease: &mut Lease,
        one: Stat,
        (other, stat): (&Place, Stat),
    ) -> Result<bool, FsError> {
        match (one.inode, stat.inode) {
            (Some(one), Some(other)) => Ok(one == other),
            (None, _) | (_, None) if one.size == stat.size => {
                has_content(lease, self.call, other, self.sha256).await
            }
            (None, _) | (_, None) => Ok(false),
        }
    }

    pub(super) fn outcome(&self, followed: Followed) -> Outcome {
        let (size, modified) = (self.intent.size.unwrap_or_default(), self.file.modified.as_deref());
        let mut result = fetch::result(self.place.as_str(), size, self.sha256, modified);
        if let Some(result) = result.as_object_mut() {
            result.insert("then".to_owned(), Value::from(followed.as_str()));
            if let (Followed::Moved, After::MoveTo(to)) = (followed, &self.after) {
                result.insert("moved_to".to_owned(), Value::from(to.as_str()));
            }
        }
        plain(result)
    }
}

/// What the intent names as its target.
fn target<'a>(place: &'a Place, after: &'a After) -> &'a Place {
    match after {
        After::Delete => place,
        After::MoveTo(to) => to,
    }
}
