//! Uploads in pieces: what a part of ours is in a store.
//!
//! Nothing of an upload can be seen before it is completed, and it is completed in one step; so it takes the place of the
//! file beside the target that other kinds of place have. It is bound to the target's key from its beginning, and only its
//! number tells it from others of that key. So a small object, the *marker*, lies where the part would: it names the
//! upload and the target, and shows to a later attempt, or to another agent, what there is to go on with or to give up.

use super::{
    answer::Root,
    exchange::{Bucket, Piece, Request, Session},
    sign::encode,
    xml,
};
use crate::file::{
    backend::{FsError, PartFile, Problem},
    over_http::{Waits as _, lost},
    place::Place,
};
use bytes::Bytes;
use reqwest::{
    Method,
    header::{ETAG, HeaderMap},
};
use serde::{Deserialize, Serialize};
use std::{fmt::Write as _, mem, sync::Arc};
use tokio::task::JoinHandle;

/// The smallest piece that stores take, but for the last.
const MIN_PIECE: u64 = 5 * 1024 * 1024;
/// The largest piece that is held in memory.
const MAX_PIECE: u64 = 16 * 1024 * 1024;
/// How many pieces an upload may have.
pub(super) const MAX_PIECES: u64 = 10_000;
/// Longer markers are not ours.
const MAX_MARKER: u64 = 16 * 1024;
/// Tells whose upload became an object: the name of the part.
pub(super) const MADE_FROM_PART: &str = "x-amz-meta-passerelle-part";

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) upload: String,
    /// The place that the upload is bound to, in the folder of the marker.
    pub(super) target: String,
}

/// How large the pieces of a file of this size are.
pub(super) fn piece_size(size: u64) -> Result<usize, FsError> {
    let piece = size.div_ceil(MAX_PIECES).max(MIN_PIECE);
    if piece > MAX_PIECE {
        return Err(FsError::new(Problem::TooLarge, format!("{size} bytes in {MAX_PIECES} pieces")));
    }
    usize::try_from(piece).map_err(|error| FsError::new(Problem::TooLarge, error))
}

impl Session {
    /// Begins an upload with these headers; gives its number.
    pub(super) fn begin_upload(&self, key: &str, headers: HeaderMap) -> Result<String, FsError> {
        let mut request = Request::new(Method::POST, key).query(&[("uploads", "")]);
        request.headers = headers;
        let mut upload = String::new();
        self.xml(&request, Root("InitiateMultipartUploadResult", "UploadId"), |path, text| {
            if let [_, "UploadId"] = path {
                text.trim().clone_into(&mut upload);
            }
            Ok(())
        })?;
        if upload.is_empty() { Err(xml::wrong("an upload has no number")) } else { Ok(upload) }
    }

    /// Gives an upload up. One that is not there any more is as good.
    pub(super) fn abort_upload(&self, key: &str, upload: &str) -> Result<(), FsError> {
        match self.tell(&Request::new(Method::DELETE, key).query(&[("uploadId", upload)])) {
            Err(error) if error.problem != Problem::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What the store has of an upload; `NotFound` if there is no such upload (any more).
    pub(super) fn pieces(&self, key: &str, upload: &str) -> Result<Vec<Piece>, FsError> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut after = "0".to_owned();
        loop {
            let query = [("uploadId", upload), ("part-number-marker", after.as_str())];
            let (mut number, mut etag, mut size) = (None, String::new(), None);
            let (mut more, mut next) = (false, String::new());
            let request = Request::new(Method::GET, key).query(&query);
            self.xml(&request, Root("ListPartsResult", "UploadId"), |path, text| {
                match path {
                    [_, "IsTruncated"] => more = text.trim() == "true",
                    [_, "NextPartNumberMarker"] => text.trim().clone_into(&mut next),
                    [_, "Part", "PartNumber"] => number = text.trim().parse().ok(),
                    [_, "Part", "ETag"] => text.trim().clone_into(&mut etag),
                    [_, "Part", "Size"] => size = text.trim().parse().ok(),
                    [_, "Part"] => {
                        let (Some(number), Some(size)) = (number.take(), size.take()) else {
                            return Err(xml::wrong("a piece has no number or no size"));
                        };
                        if pieces.len() as u64 >= MAX_PIECES {
                            return Err(xml::wrong("an upload has too many pieces"));
                        }
                        pieces.push(Piece { number, etag: mem::take(&mut etag), size });
                    }
                    _ => {}
                }
                Ok(())
            })?;
            if !more {
                pieces.sort_unstable_by_key(|piece| piece.number);
                return Ok(pieces);
            }
            if next.is_empty() || next == after {
                return Err(xml::wrong("a list of pieces does not go on"));
            }
            after = next;
        }
    }

    /// The final effect: the object is there at once and whole, or nothing is.
    pub(super) fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        pieces: &[Piece],
        only_if_free: bool,
    ) -> Result<(), FsError> {
        let mut body =
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
        for Piece { number, etag, .. } in pieces {
            if etag.is_empty() {
                return Err(FsError::new(
                    Problem::Unsupported,
                    "the store lists pieces without their entity tags",
                ));
            }
            let etag = xml::escape(etag);
            write!(body, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
                .map_err(|error| FsError::new(Problem::Other, error))?;
        }
        body.push_str("</CompleteMultipartUpload>");
        let query = [("uploadId", upload)];
        let mut request = Request::new(Method::POST, key).query(&query).body(body);
        if only_if_free {
            request = request.header("if-none-match", "*")?;
        }
        self.xml(&request, Root("CompleteMultipartUploadResult", "ETag"), |_, _| Ok(()))
    }

    /// Sends one piece and waits for the store's word.
    pub(super) fn send_piece(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<Piece, FsError> {
        self.wait("sending a piece", send_piece(&self.bucket, key, upload, number, body))?
    }

    /// Puts the marker of a part there.
    pub(super) fn put_marker(&self, key: &str, marker: &Marker) -> Result<(), FsError> {
        let body = serde_json::to_vec(marker).map_err(|error| FsError::new(Problem::Other, error))?;
        self.tell(&Request::new(Method::PUT, key).body(body))
    }

    /// What lies where a part's marker would: `None` if that is something else.
    pub(super) fn marker(&self, place: &Place) -> Result<Option<Marker>, FsError> {
        let key = self.bucket.key(place.as_str())?;
        let response = self.succeed(&Request::new(Method::GET, &key))?;
        if response.content_length().is_none_or(|length| length > MAX_MARKER) {
            return Ok(None);
        }
        let body = self.body(response)?;
        let marker: Option<Marker> = serde_json::from_slice(&body).ok();
        // Whoever may write in the bucket may write this: it leads to nothing but another name in its own folder.
        Ok(marker.filter(|marker| {
            let target = Place::own(marker.target.clone());
            !target.name().is_empty() && target.folder() == place.folder()
        }))
    }
}

async fn send_piece(
    bucket: &Bucket,
    key: &str,
    upload: &str,
    number: u32,
    body: Bytes,
) -> Result<Piece, FsError> {
    let (size, place) = (body.len() as u64, number.to_string());
    let query = [("partNumber", place.as_str()), ("uploadId", upload)];
    let request = Request::new(Method::PUT, key).query(&query).body(body);
    let response = bucket.succeed(&request).await.map_err(|error| match error.problem {
        // The upload was given up meanwhile: another attempt begins a new one.
        Problem::NotFound => FsError { problem: Problem::Lost, ..error },
        _ => error,
    })?;
    let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let etag = etag.ok_or_else(|| FsError::new(Problem::Protocol, "a stored piece has no entity tag"))?;
    response.bytes().await.map_err(lost)?;
    Ok(Piece { number, etag, size })
}

/// An upload that is being written: one piece is filled while the one before is on its way.
pub(super) struct Part {
    session: Arc<Session>,
    /// The part's own path, under which others find what was sent.
    place: String,
    key: String,
    upload: String,
    piece: usize,
    filling: Vec<u8>,
    number: u32,
    flying: Option<JoinHandle<Result<Piece, FsError>>>,
    sent: Vec<Piece>,
}

impl Part {
    pub(super) fn new(
        session: Arc<Session>,
        place: &Place,
        key: String,
        upload: String,
        size: u64,
    ) -> Result<Self, FsError> {
        let piece = piece_size(size)?;
        let filling = Vec::with_capacity(usize::try_from(size).unwrap_or(piece).min(piece));
        let place = place.to_string();
        Ok(Self { session, place, key, upload, piece, filling, number: 0, flying: None, sent: Vec::new() })
    }

    /// Waits for the piece on its way.
    fn land(&mut self) -> Result<(), FsError> {
        let Some(flying) = &mut self.flying else { return Ok(()) };
        let landed = self.session.wait("sending a piece", flying)?;
        self.flying = None;
        let piece = landed.map_err(|error| FsError::new(Problem::Lost, error))??;
        self.sent.push(piece);
        Ok(())
    }

    fn launch(&mut self) -> Result<(), FsError> {
        self.land()?;
        let full = mem::take(&mut self.filling);
        self.number += 1;
        let (bucket, key, upload) = (Arc::clone(&self.session.bucket), self.key.clone(), self.upload.clone());
        let number = self.number;
        let Some(runtime) = self.session.bucket.runtime.handle() else {
            return Err(FsError::new(Problem::Lost, "the resource is being closed"));
        };
        self.flying =
            Some(runtime.spawn(async move { send_piece(&bucket, &key, &upload, number, full.into()).await }));
        Ok(())
    }
}

impl PartFile for Part {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), FsError> {
        while !bytes.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling.reserve_exact(self.piece);
            }
            let room = self.piece.saturating_sub(self.filling.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.filling.extend_from_slice(now);
            bytes = later;
            if self.filling.len() >= self.piece {
                self.launch()?;
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<bool, FsError> {
        // An empty file is one empty piece.
        if !self.filling.is_empty() || self.number == 0 {
            self.launch()?;
        }
        self.land()?;
        self.session.sent().insert(self.place.clone(), self.sent.clone());
        // A store that answered has stored it.
        Ok(true)
    }

    fn size(&mut self) -> Result<u64, FsError> {
        Ok(self.session.pieces(&self.key, &self.upload)?.iter().map(|piece| piece.size).sum())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(flying) = self.flying.take() {
            flying.abort();
        }
    }
}

/// The bucket's own name for a source to copy.
pub(super) fn copy_source(bucket: &Bucket, key: &str) -> String {
    let names: Vec<String> = key.split('/').map(encode).collect();
    format!("/{}/{}", bucket.name, names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_grow_with_the_file_as_far_as_memory_allows() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(piece_size(0).unwrap() as u64, 5 * MIB);
        assert_eq!(piece_size(50_000 * MIB).unwrap() as u64, 5 * MIB);
        assert_eq!(piece_size(50_000 * MIB + 1).unwrap() as u64, 5 * MIB + 1);
        assert_eq!(piece_size(160_000 * MIB).unwrap() as u64, 16 * MIB);
        assert_eq!(piece_size(160_000 * MIB + 1).unwrap_err().problem, Problem::TooLarge);
    }

    #[test]
    fn a_marker_is_told_from_anything_else() {
        let marker = Marker { upload: "u".to_owned(), target: "in/a.csv".to_owned() };
        let text = serde_json::to_string(&marker).unwrap();
        assert_eq!(serde_json::from_str::<Marker>(&text).unwrap(), marker);
        assert!(serde_json::from_str::<Marker>("{\"upload\":\"u\",\"target\":\"a\",\"more\":1}").is_err());
    }
}
