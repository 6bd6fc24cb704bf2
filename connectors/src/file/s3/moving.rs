//! Moves: a copy inside the store, then a delete. And whether a store obeys conditions.

use super::{
    Head, Remote,
    answer::Root,
    exchange::{Piece, Request, Session},
    sign::hex_digest,
    upload::{MADE_FROM_PART, MAX_PIECES, copy_source},
};
use crate::file::{
    backend::{Existing, FsError, Problem, Renamed},
    place::Place,
};
use bytes::Bytes;
use reqwest::{
    Method,
    header::{HeaderMap, HeaderValue},
};
use std::sync::PoisonError;

/// The most that is copied by one request: more in one takes stores longer than some wait.
const COPY: u64 = 256 * 1024 * 1024;
/// Tells which file, as it was, a copy was made from.
pub(super) const MADE_FROM_FILE: &str = "x-amz-meta-passerelle-from";
/// What conditions are tried on, never shown in lists.
const TRIED: &str = ".passerelle-check-conditions.part";
/// What is said of an object beside its content, and kept by a copy.
const KEPT: &[&str] = &[
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];

/// What a copy says of its source.
pub(super) fn mark(from: &Place, size: u64, modified: Option<&str>) -> String {
    hex_digest(format!("{from}\n{size}\n{}", modified.unwrap_or_default()).as_bytes())
}

impl Remote {
    pub(super) fn move_object(
        &mut self,
        from: &Place,
        to: &Place,
        existing: Existing<'_>,
    ) -> Result<Renamed, FsError> {
        let (source, target) = (self.key(from)?, self.key(to)?);
        let head = Head::of(&self.session, &source)?;
        let only_if_free = existing == Existing::Refuse;
        let conditional = only_if_free && self.session.obeys_conditions()?;
        let bucket = std::sync::Arc::clone(&self.session.bucket);
        let held = only_if_free.then(|| bucket.careful.lock().unwrap_or_else(PoisonError::into_inner));
        if only_if_free && self.head(to)?.is_some() {
            return Err(FsError::new(Problem::Exists, to));
        }
        let modified = head.modified.map(|time| time.to_string());
        let mark = mark(from, head.size, modified.as_deref());
        let said = said_of(&head, &mark);
        // Conditions are obeyed where uploads are completed; of a plain copy nobody knows.
        if conditional || head.size > COPY {
            self.session.copy_in_pieces(&source, &target, &head, said, conditional)?;
        } else {
            self.session.copy(&source, &target, &head, said)?;
        }
        drop(held);
        let copied = Head::of(&self.session, &target)?;
        if copied.size != head.size {
            let detail = format!("{from} has {} bytes, its copy {}", head.size, copied.size);
            return Err(FsError::new(Problem::Protocol, detail));
        }
        // Whatever came to the old place meanwhile is somebody's and stays.
        match Head::of(&self.session, &source) {
            // The copy itself, in a store to which two keys are one.
            Ok(now) if now.says(MADE_FROM_FILE, &mark) => {}
            Ok(now) if now.etag == head.etag => {
                self.session.tell(&Request::new(Method::DELETE, &source)).map_err(|error| {
                    // The file is at both places: the next attempt finds the copy's mark.
                    FsError { problem: Problem::Lost, ..error }
                })?;
            }
            Ok(_) => tracing::warn!("a file was replaced while it was moved: the new one stays where it is"),
            Err(error) if error.problem == Problem::NotFound => {}
            Err(error) => return Err(FsError { problem: Problem::Lost, ..error }),
        }
        Ok(Renamed { atomic: existing != Existing::Refuse || conditional })
    }
}

/// All that is said of the source, and the mark; `None` if it cannot be said again, so that the store has to copy it.
fn said_of(head: &Head, mark: &str) -> Option<HeaderMap> {
    let mut said = HeaderMap::new();
    for (name, value) in &head.headers {
        let own = name == MADE_FROM_PART || name == MADE_FROM_FILE;
        if !own && (KEPT.contains(&name.as_str()) || name.as_str().starts_with("x-amz-meta-")) {
            value.to_str().ok()?;
            said.insert(name.clone(), value.clone());
        }
    }
    said.insert(MADE_FROM_FILE, HeaderValue::from_str(mark).ok()?);
    Some(said)
}

impl Session {
    fn copy(&self, source: &str, target: &str, head: &Head, said: Option<HeaderMap>) -> Result<(), FsError> {
        let mut request = Request::new(Method::PUT, target);
        if let Some(said) = said {
            request.headers = said;
            request = request.header("x-amz-metadata-directive", "REPLACE")?;
        }
        request = request.header("x-amz-copy-source", &copy_source(&self.bucket, source))?;
        if let Some(etag) = &head.etag {
            request = request.header("x-amz-copy-source-if-match", etag)?;
        }
        self.xml(&request, Root("CopyObjectResult", "ETag"), |_, _| Ok(())).map_err(changed)
    }

    fn copy_in_pieces(
        &self,
        source: &str,
        target: &str,
        head: &Head,
        said: Option<HeaderMap>,
        only_if_free: bool,
    ) -> Result<(), FsError> {
        let upload = self.begin_upload(target, said.unwrap_or_default())?;
        let done = self
            .copy_pieces(source, target, head, &upload)
            .and_then(|pieces| self.complete_upload(target, &upload, &pieces, only_if_free));
        if done.as_ref().is_err_and(|error| !error.is_broken()) {
            drop(self.abort_upload(target, &upload));
        }
        done
    }

    fn copy_pieces(
        &self,
        source: &str,
        target: &str,
        head: &Head,
        upload: &str,
    ) -> Result<Vec<Piece>, FsError> {
        if head.size == 0 {
            // No range of an empty object can be named.
            return Ok(vec![self.send_piece(target, upload, 1, Bytes::new())?]);
        }
        let step = head.size.div_ceil(MAX_PIECES).max(COPY);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut begin = 0;
        while begin < head.size {
            let end = (begin + step).min(head.size);
            let number = pieces.len() as u32 + 1;
            let place = number.to_string();
            let query = [("partNumber", place.as_str()), ("uploadId", upload)];
            let mut request = Request::new(Method::PUT, target)
                .query(&query)
                .header("x-amz-copy-source", &copy_source(&self.bucket, source))?
                .header("x-amz-copy-source-range", &format!("bytes={begin}-{}", end - 1))?;
            if let Some(etag) = &head.etag {
                request = request.header("x-amz-copy-source-if-match", etag)?;
            }
            let mut etag = String::new();
            self.xml(&request, Root("CopyPartResult", "ETag"), |path, text| {
                if let [_, "ETag"] = path {
                    text.trim().clone_into(&mut etag);
                }
                Ok(())
            })
            .map_err(changed)?;
            pieces.push(Piece { number, etag, size: end - begin });
            begin = end;
        }
        Ok(pieces)
    }

    /// Whether the store obeys the condition that the name be free when an upload is completed. Some know no such
    /// condition and replace what is there. Tried once, on an object of our own that is deleted at once; its name is always
    /// the same, so that the next try takes away what a killed agent left.
    pub(super) fn obeys_conditions(&self) -> Result<bool, FsError> {
        let mut known = self.bucket.conditional.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(obeys) = *known {
            return Ok(obeys);
        }
        let key = self.bucket.key(TRIED)?;
        // Twice, since another agent may just take the same object away.
        let tried = self.try_condition(&key).and_then(|obeys| Ok(obeys || self.try_condition(&key)?));
        let obeys = match tried {
            // An access key that may not write here may write elsewhere, without this comfort.
            Err(error) if matches!(error.problem, Problem::Unsupported | Problem::Refused) => false,
            other => other?,
        };
        *known = Some(obeys);
        if !obeys {
            tracing::info!("the object store takes names without looking whether they are free");
        }
        Ok(obeys)
    }

    fn try_condition(&self, key: &str) -> Result<bool, FsError> {
        self.tell(&Request::new(Method::PUT, key))?;
        let tried = self.begin_upload(key, HeaderMap::new()).and_then(|upload| {
            let completed = self
                .send_piece(key, &upload, 1, Bytes::new())
                .and_then(|piece| self.complete_upload(key, &upload, &[piece], true));
            if completed.is_err() {
                drop(self.abort_upload(key, &upload));
            }
            match completed {
                Ok(()) => Ok(false),
                Err(error) if error.problem == Problem::Exists => Ok(true),
                Err(error) => Err(error),
            }
        });
        self.tell(&Request::new(Method::DELETE, key))?;
        tried
    }
}

/// What a failed condition on the source means.
fn changed(error: FsError) -> FsError {
    if error.problem == Problem::Exists { FsError { problem: Problem::Changed, ..error } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_what_was_said_of_its_source_and_where_it_came_from() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/csv"),
            ("x-amz-meta-owner", "compta"),
            ("x-amz-meta-passerelle-part", "older"),
            ("x-amz-request-id", "7"),
            ("content-length", "3"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let head = Head { size: 3, modified: None, etag: None, headers };
        let said = said_of(&head, "mark").unwrap();
        let mut names: Vec<&str> = said.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "x-amz-meta-owner", MADE_FROM_FILE]);
    }

    #[test]
    fn marks_tell_files_apart() {
        let place = |path: &str| Place::own(path.to_owned());
        let first = mark(&place("a"), 1, Some("2026-01-01T00:00:00Z"));
        assert_eq!(first, mark(&place("a"), 1, Some("2026-01-01T00:00:00Z")));
        for other in [mark(&place("b"), 1, Some("2026-01-01T00:00:00Z")), mark(&place("a"), 2, None)] {
            assert_ne!(first, other);
        }
    }
}
