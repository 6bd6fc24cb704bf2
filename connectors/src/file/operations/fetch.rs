//! `fetch`: a file's content as the output payload, in constant memory.

use super::{
    super::{
        backend::FsError,
        place::Place,
        pool::{Lease, Pool},
        worker::Hands,
    },
    plain,
};
use crate::{Call, Code, Failure, Outcome, Output, Produced};
use serde_json::{Value, json};

/// Performs one attempt.
pub(super) async fn fetch(
    pool: &Pool,
    call: &Call,
    place: Place,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let path = place.to_string();
    let mut lease = pool.lease_for(call).await?;
    let fetched = read(&mut lease, call, place, output).await;
    lease.release().await;
    let Read { produced, modified, tag: _ } = fetched?;
    Ok(plain(result(&path, produced.size, produced.sha256, modified.as_deref())))
}

/// What was read.
pub(super) struct Read {
    pub(super) produced: Produced,
    pub(super) modified: Option<String>,
    /// What the target calls this version of the content.
    pub(super) tag: Option<String>,
}

/// The result of a fetch.
pub(super) fn result(path: &str, size: u64, sha256: [u8; 32], modified: Option<&str>) -> Value {
    let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!({ "path": path, "size": size, "sha256": sha256, "modified_at": modified })
}

/// Reads all of a file that stays the same meanwhile.
pub(super) async fn read(
    lease: &mut Lease,
    call: &Call,
    place: Place,
    output: &mut Output,
) -> Result<Read, Failure> {
    let path = place.to_string();
    let opened = lease.run(move |hands| {
        let mut source = hands.fs.open(&place)?;
        let stat = source.stat()?;
        hands.source = Some(source);
        Ok((stat, hands.fs.features().read))
    });
    let (stat, slice) = opened.await?;
    call.progress.set_total(stat.size);
    let length = usize::try_from(stat.size).unwrap_or(usize::MAX).saturating_add(1).min(slice);
    // The next slice is read while the one before is stored.
    let (mut full, mut n) = lease.run(next(vec![0; length])).await?;
    let mut spare = vec![0; length];
    let mut seen = n as u64;
    // More than it has is not the file that was looked at, and might never end.
    while n > 0 && seen <= stat.size {
        let reading = async { lease.run(next(spare)).await.map_err(Failure::from) };
        let ((buffer, following), ()) =
            tokio::try_join!(reading, output.write(full.get(..n).unwrap_or_default()))?;
        call.progress.add(n as u64);
        spare = full;
        (full, n) = (buffer, following);
        seen = seen.saturating_add(n as u64);
    }
    let after = lease.run(|hands| {
        let Some(mut source) = hands.source.take() else { return Ok(None) };
        Ok(Some((source.stat()?, source.tag())))
    });
    let after = after.await?;
    let changed =
        after.as_ref().is_some_and(|(after, _)| after.size != stat.size || after.modified != stat.modified);
    if seen != stat.size || changed {
        let message = "the file changed while it was read";
        return Err(
            Failure::retry(Code::TargetConflict, message).detail(format!("{path}: {stat:?}, then {after:?}"))
        );
    }
    let produced = output.finish("application/octet-stream").await?;
    let modified = stat.modified.map(|time| time.to_string());
    Ok(Read { produced, modified, tag: after.and_then(|(_, tag)| tag) })
}

fn next(
    mut buffer: Vec<u8>,
) -> impl FnOnce(&mut Hands) -> Result<(Vec<u8>, usize), FsError> + Send + 'static {
    move |hands| {
        let n = match &mut hands.source {
            Some(source) => source.read(&mut buffer)?,
            None => 0,
        };
        Ok((buffer, n))
    }
}
