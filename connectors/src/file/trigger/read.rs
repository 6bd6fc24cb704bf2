//! Reads a file exactly as it was seen: looked at before, after, and under its name once more, so that neither a file
//! that still grows nor one that takes its place meanwhile passes for it.

use super::{
    super::{
        backend::{FsError, Problem},
        place::Place,
        pool::Lease,
        worker::Hands,
    },
    look,
};
use crate::{Failure, Output, Seen};

/// The media type: nobody says what is in a file.
const MEDIA_TYPE: &str = "application/octet-stream";

/// Reads it into `output`.
pub(super) async fn read(lease: &mut Lease, seen: &Seen, output: &mut Output) -> Result<(), Failure> {
    let place = Place::new(&seen.path)?;
    let expected = seen.clone();
    // Opening and the first slice in one: small files are read in one piece of work.
    let opened = lease.run(move |hands| {
        same(hands, &expected)?;
        let mut source = hands.fs.open(&place)?;
        let size = source.stat()?.size;
        if size != expected.size {
            return Err(changed(&expected));
        }
        hands.source = Some(source);
        // One byte more than there should be tells that the end is the end.
        let slice = hands.fs.features().read;
        let length = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1).min(slice);
        next(hands, vec![0; length])
    });
    let (mut full, mut n) = opened.await?;
    let mut spare = vec![0; full.len()];
    let mut done: u64 = 0;
    while n > 0 {
        done += n as u64;
        if done > seen.size {
            return Err(changed(seen).into());
        }
        // The next slice is read while the one before is stored.
        let reading = async { lease.run(move |hands| next(hands, spare)).await.map_err(Failure::from) };
        let ((buffer, following), ()) =
            tokio::try_join!(reading, output.write(full.get(..n).unwrap_or_default()))?;
        spare = full;
        (full, n) = (buffer, following);
    }
    if done != seen.size {
        return Err(changed(seen).into());
    }
    let expected = seen.clone();
    lease
        .run(move |hands| {
            hands.source = None;
            same(hands, &expected)
        })
        .await?;
    output.finish(MEDIA_TYPE).await.map(drop)
}

fn next(hands: &mut Hands, mut buffer: Vec<u8>) -> Result<(Vec<u8>, usize), FsError> {
    let n = match &mut hands.source {
        Some(source) => source.read(&mut buffer)?,
        None => 0,
    };
    Ok((buffer, n))
}

/// Whether what lies there is still what was seen.
fn same(hands: &mut Hands, seen: &Seen) -> Result<(), FsError> {
    match look(hands.fs.as_mut(), &seen.path)? {
        Some(now) if now == *seen => Ok(()),
        Some(_) => Err(changed(seen)),
        None => Err(FsError::new(Problem::NotFound, &seen.path)),
    }
}

fn changed(seen: &Seen) -> FsError {
    FsError::new(Problem::Changed, &seen.path)
}
