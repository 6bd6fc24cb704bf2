//! What pickup and watch need, written once over any backend: see [`Triggers`].

mod notice;
mod read;
mod settle;

use super::{
    File,
    backend::{EntryKind, FsError, Links, Problem, Stat},
    operations::list::{Way, walk},
    params::Cursor,
    place::{Place, is_own, join},
    pool::Lease,
};
use crate::{Failure, Notices, Output, Patience, Scan, Scanned, Seen, Settle, Settled, Triggers};
use std::{future::Future, pin::Pin};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Seen {
    fn new(path: String, stat: Stat) -> Self {
        let Stat { kind: _, size, modified, inode } = stat;
        let whole = |time: jiff::Timestamp| jiff::Timestamp::from_second(time.as_second()).unwrap_or(time);
        let modified = if inode.is_some() { modified } else { modified.map(whole) };
        Self { path, size, modified, inode }
    }
}

/// Whether two looks saw the same file. Where only one of them tells what stands for an inode, as lists and single looks of
/// object stores do, size and second decide.
fn same(one: &Seen, other: &Seen) -> bool {
    let second = |seen: &Seen| seen.modified.map(|time| time.as_second());
    let times = match (one.inode, other.inode) {
        (Some(a), Some(b)) => a == b && one.modified == other.modified,
        (None, None) | (Some(_), None) | (None, Some(_)) => second(one) == second(other),
    };
    times && one.size == other.size && one.path == other.path
}

/// The file at a place, if there is one.
fn look(fs: &mut dyn super::backend::Backend, path: &str) -> Result<Option<Seen>, FsError> {
    match fs.stat(path, Links::Keep) {
        Ok(stat) if stat.kind == EntryKind::File => Ok(Some(Seen::new(path.to_owned(), stat))),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.problem, Problem::NotFound | Problem::NotAFolder) => Ok(None),
        Err(error) => Err(error),
    }
}

impl File {
    async fn lease_with(&self, patience: &Patience) -> Result<Lease, Failure> {
        self.pool.lease(patience.timeout, &patience.cancel).await
    }

    async fn page(&self, scan: Scan, patience: &Patience) -> Result<Scanned, Failure> {
        let Scan { folder, wanted, entered, after, limit } = scan;
        let way = Way {
            folder: folder.clone(),
            limit,
            cursor: after.map(|last| Cursor { last, inside: false }),
            shows: &|path, name, stat| {
                stat.kind == EntryKind::File && !is_own(name.as_bytes()) && wanted(path)
            },
            enters: &|path| entered(path),
            // Its files stay in the agent: no result has to hold them.
            weighs: &|_, _| 0,
            beat: &|| {},
        };
        let mut lease = self.lease_with(patience).await?;
        let walked = walk(&mut lease, way).await;
        let walked = match walked {
            Ok(walked) => walked,
            Err(failure) => {
                lease.release().await;
                return Err(failure);
            }
        };
        let next = walked.next.map(|cursor| cursor.last);
        let items = walked.items.into_iter();
        let seen = items.map(|(path, stat)| Seen::new(join(&folder, &path), stat)).collect::<Vec<_>>();
        let seen = lease.run(move |hands| {
            let mut files = Vec::with_capacity(seen.len());
            for one in seen {
                // Some lists tell no times: then each file is asked for its own.
                let told = one.modified.is_some() || one.inode.is_some();
                files.extend(if told { Some(one) } else { look(hands.fs.as_mut(), &one.path)? });
            }
            Ok(files)
        });
        let files = seen.await;
        lease.release().await;
        Ok(Scanned { files: files?, next, unreadable: walked.unreadable })
    }
}

impl Triggers for File {
    fn scan<'a>(&'a self, scan: Scan, patience: &'a Patience) -> Boxed<'a, Result<Scanned, Failure>> {
        Box::pin(self.page(scan, patience))
    }

    fn look<'a>(&'a self, path: &'a str, patience: &'a Patience) -> Boxed<'a, Result<Option<Seen>, Failure>> {
        Box::pin(async move {
            let place = Place::new(path)?;
            let mut lease = self.lease_with(patience).await?;
            let found = lease.run(move |hands| look(hands.fs.as_mut(), place.as_str())).await;
            lease.release().await;
            Ok(found?)
        })
    }

    fn read<'a>(
        &'a self,
        seen: &'a Seen,
        output: &'a mut Output,
        patience: &'a Patience,
    ) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mut lease = self.lease_with(patience).await?;
            let read = read::read(&mut lease, seen, output).await;
            lease.release().await;
            read
        })
    }

    fn settle<'a>(
        &'a self,
        settle: &'a Settle,
        patience: &'a Patience,
    ) -> Boxed<'a, Result<Settled, Failure>> {
        Box::pin(async move {
            let work = settle::Work::new(settle)?;
            let mut lease = self.lease_with(patience).await?;
            // Cut off between two steps it is taken up again, but there is no need for it.
            lease.commit();
            let settled = lease.run(move |hands| work.go_on(hands.fs.as_mut())).await;
            lease.release().await;
            Ok(settled?)
        })
    }

    fn notices(&self, folder: &str) -> Option<Box<dyn Notices>> {
        let connect = self.pool.connector();
        notice::watch(connect.local_root()?, folder)
    }
}
