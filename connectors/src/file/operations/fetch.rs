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
use crate::{Call, Code, Failure, Outcome, Output};
use serde_json::json;

/// Performs one attempt.
pub(super) async fn fetch(
    pool: &Pool,
    call: &Call,
    place: Place,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let mut lease = pool.lease_for(call).await?;
    let fetched = read(&mut lease, call, place, output).await;
    lease.release().await;
    fetched
}

async fn read(lease: &mut Lease, call: &Call, place: Place, output: &mut Output) -> Result<Outcome, Failure> {
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
    while n > 0 {
        let reading = async { lease.run(next(spare)).await.map_err(Failure::from) };
        let ((buffer, following), ()) =
            tokio::try_join!(reading, output.write(full.get(..n).unwrap_or_default()))?;
        call.progress.add(n as u64);
        spare = full;
        (full, n) = (buffer, following);
    }
    let after = lease.run(|hands| hands.source.as_mut().map(|source| source.stat()).transpose()).await?;
    if call.progress.done() < stat.size
        || after.is_some_and(|after| after.size != stat.size || after.modified != stat.modified)
    {
        let message = "the file changed while it was read";
        return Err(
            Failure::retry(Code::TargetConflict, message).detail(format!("{path}: {stat:?}, then {after:?}"))
        );
    }
    let produced = output.finish("application/octet-stream").await?;
    let sha256 = produced.sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(plain(json!({
        "path": path,
        "size": produced.size,
        "sha256": sha256,
        "modified_at": stat.modified.map(|time| time.to_string()),
    })))
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
