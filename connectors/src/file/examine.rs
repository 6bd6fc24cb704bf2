//! A look at a folder for the operator: each step of connecting on its own, and a file of ours written, renamed and
//! deleted where a drop would be allowed.

use super::{
    backend::{Backend, Existing, FsError, Interrupt, Links as Symlinks, Problem},
    place::{Place, join},
    pool::Pool,
    worker::Hands,
};
use crate::{Code, Examine, Failure, Link, examine::Links};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What a call may take beyond its own time limit before it counts as hung.
const SLACK: Duration = Duration::from_secs(10);
/// What is written for a try.
const CONTENT: &[u8] = b"written by passerelle-agent check, which deletes it at once\n";
/// How the name of the file of a try begins; it ends as unfinished files do, so that no list and no job sees it.
const NAME: &str = ".passerelle-check-";

/// Looks at every link up to the first that fails.
pub(super) async fn examine(pool: &Pool, what: Examine) -> Vec<Link> {
    let connect = pool.connector();
    let order = connect.links();
    let told = Arc::new(Mutex::new(Links::default()));
    let interrupt = Interrupt::default();
    let (inner, telling, limit) = (interrupt.clone(), Arc::clone(&told), what.timeout);
    let connecting = tokio::task::spawn_blocking(move || {
        let mut passed = |name, found: String| {
            telling.lock().unwrap_or_else(PoisonError::into_inner).passed(name, found);
        };
        connect.connect_telling(limit, &inner, &mut passed).map(drop)
    });
    let ended = tokio::time::timeout(what.timeout.saturating_mul(2).saturating_add(SLACK), connecting).await;
    let mut links = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    let failure = match ended {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(failure))) => Some(failure),
        Ok(Err(e)) => Some(Failure::retry(Code::Internal, "the connecting thread ended early").detail(e)),
        Err(_) => {
            interrupt.fire();
            Some(FsError::new(Problem::TimedOut, "while connecting").into())
        }
    };
    if let Some(failure) = failure {
        // The first one that was not passed is where it failed.
        let mut rest = order.iter().copied().skip(links.len());
        links.failed(rest.next().unwrap_or("folder"), failure);
        links.skipped(rest);
        if !what.try_writing.is_empty() {
            links.skipped(["writing"]);
        }
        return links.finish();
    }
    if !what.try_writing.is_empty() {
        let mut found = Vec::new();
        for folder in what.try_writing {
            match try_writing(pool, folder, what.timeout).await {
                Ok(where_to) => found.push(where_to),
                Err(failure) => {
                    links.failed("writing", failure);
                    return links.finish();
                }
            }
        }
        found.dedup();
        links.passed("writing", format!("a file was written, renamed and deleted in {}", found.join(", ")));
    }
    links.finish()
}

/// Writes, renames and deletes a file in `folder`, or in the nearest folder above it that is there; says in which.
async fn try_writing(pool: &Pool, folder: String, timeout: Duration) -> Result<String, Failure> {
    let mut lease = pool.lease(timeout, &CancellationToken::new()).await?;
    let done = lease.run(move |hands| write_rename_delete(hands, &folder)).await;
    lease.release().await;
    done.map_err(Into::into)
}

fn write_rename_delete(hands: &mut Hands, folder: &str) -> Result<String, FsError> {
    let folder = nearest(hands.fs.as_mut(), folder)?;
    let shown = if folder.is_empty() { "the root folder".to_owned() } else { folder.clone() };
    let name = format!("{NAME}{}", Uuid::now_v7());
    let (first, second) = (
        Place::own(join(&folder, &format!("{name}.part"))),
        Place::own(join(&folder, &format!("{name}-renamed.part"))),
    );
    let at = |step: &str, error: FsError| {
        FsError::new(error.problem, format!("{step} a file in {shown} failed: {}", error.detail))
    };
    let mut part = hands.create_part(&first, &second, CONTENT.len() as u64).map_err(|e| at("creating", e))?;
    // Whatever happens from here on, the connection's own thread removes it.
    hands.doomed = Some(first.clone());
    part.write(CONTENT).and_then(|()| part.sync()).map_err(|e| at("writing", e))?;
    drop(part);
    hands.fs.rename(&first, &second, Existing::Refuse).map_err(|e| at("renaming", e))?;
    hands.doomed = Some(second.clone());
    hands
        .fs
        .delete(&second)
        .map_err(|e| at(&format!("{} stays: remove it by hand; deleting", second.name()), e))?;
    hands.doomed = None;
    Ok(shown)
}

fn nearest(fs: &mut dyn Backend, folder: &str) -> Result<String, FsError> {
    let mut folder = folder.to_owned();
    while !folder.is_empty() {
        match fs.stat(&folder, Symlinks::Follow) {
            Ok(_) => break,
            Err(error) if error.problem == Problem::NotFound => {
                folder = Place::own(folder).folder().to_owned();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(folder)
}
