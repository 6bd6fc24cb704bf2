//! Unpacks the body of an answer that comes compressed, as it comes and never more than a little at once.

use crate::{Code, Failure};
use flate2::write::MultiGzDecoder;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use std::io::Write as _;

/// What is unpacked at once: at most a thousand times as much comes out.
const SLICE: usize = 2 * 1024;
/// What a body may unpack to, as a multiple of its size on the line, once it is larger than the second: honest content
/// stays far below.
const MAX_RATIO: u64 = 250;
const RATIO_FROM: u64 = 8 * 1024 * 1024;

/// Unpacks gzip.
pub(super) struct Unpacker {
    decoder: MultiGzDecoder<Vec<u8>>,
    packed: u64,
    unpacked: u64,
    max: u64,
}

impl Unpacker {
    /// For an answer whose body is all of a content in gzip; `None` for one to be handed on as it is. A part of a content
    /// (206) cannot be unpacked.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap, max: u64) -> Option<Self> {
        let is_gzip = |value: &HeaderValue| {
            value.to_str().is_ok_and(|text| {
                let text = text.trim();
                text.eq_ignore_ascii_case("gzip") || text.eq_ignore_ascii_case("x-gzip")
            })
        };
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        let packed = codings.next().is_some_and(is_gzip) && codings.next().is_none();
        (packed && status != StatusCode::PARTIAL_CONTENT).then(|| Self {
            decoder: MultiGzDecoder::new(Vec::new()),
            packed: 0,
            unpacked: 0,
            max,
        })
    }

    /// Takes out of the header fields what does not hold for the unpacked content.
    pub(super) fn correct(headers: &mut HeaderMap) {
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
    }

    /// The slices of a piece of the body, each to be given to [`Self::unpack`].
    pub(super) fn slices(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
        piece.chunks(SLICE)
    }

    /// Unpacks one slice.
    ///
    /// # Errors
    /// `too_large` past the limits, `target_protocol` if it is not gzip.
    pub(super) fn unpack(&mut self, slice: &[u8]) -> Result<Vec<u8>, Failure> {
        self.packed += slice.len() as u64;
        self.decoder.write_all(slice).map_err(|e| broken(&e))?;
        self.taken()
    }

    /// What is left at the end of the body.
    ///
    /// # Errors
    /// As [`Self::unpack`]; also if the body ended too early.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, Failure> {
        // An empty body is an empty content, whatever its header says.
        if self.packed > 0 {
            self.decoder.try_finish().map_err(|e| broken(&e))?;
        }
        self.taken()
    }

    fn taken(&mut self) -> Result<Vec<u8>, Failure> {
        let unpacked = std::mem::take(self.decoder.get_mut());
        self.unpacked += unpacked.len() as u64;
        if self.unpacked > self.max {
            let message = format!(
                "the response unpacks to more than the resource's max_response of {} bytes",
                self.max
            );
            return Err(Failure::permanent(Code::TooLarge, message));
        }
        if self.unpacked > RATIO_FROM && self.unpacked / MAX_RATIO > self.packed {
            let message = format!("the response unpacks to more than {MAX_RATIO} times its size");
            return Err(Failure::permanent(Code::TooLarge, message));
        }
        Ok(unpacked)
    }
}

fn broken(error: &std::io::Error) -> Failure {
    Failure::retry(Code::TargetProtocol, "the response is not the gzip that it says it is").detail(error)
}

#[cfg(test)]
mod tests {
    use super::{RATIO_FROM, SLICE, Unpacker};
    use crate::{Code, Failure};
    use flate2::{Compression, write::GzEncoder};
    use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_ENCODING};
    use std::io::Write as _;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacker(max: u64) -> Unpacker {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        Unpacker::of(StatusCode::OK, &headers, max).unwrap()
    }

    /// The content, and the most that came out of one slice.
    fn unpack(packed: &[u8], max: u64) -> Result<(Vec<u8>, usize), Failure> {
        let (mut unpacker, mut content, mut most) = (unpacker(max), Vec::new(), 0);
        for slice in Unpacker::slices(packed) {
            let piece = unpacker.unpack(slice)?;
            most = most.max(piece.len());
            content.extend_from_slice(&piece);
        }
        content.extend_from_slice(&unpacker.finish()?);
        Ok((content, most))
    }

    #[test]
    fn honest_content_comes_out_whole() {
        let rows: String =
            (0..200_000).map(|i| format!("{i};Camille;Lefèvre;{}\n", i * 7919 % 1000)).collect();
        for content in ["", "a", &rows] {
            let packed = gzip(content.as_bytes());
            assert_eq!(unpack(&packed, 1 << 30).unwrap().0, content.as_bytes());
        }
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(unpack(&two, 7).unwrap().0, b"one two", "members follow one another (RFC 1952)");
        assert_eq!(unpack(&[], 7).unwrap().0, b"");
    }

    #[test]
    fn limits_hold_on_size_and_ratio_and_little_comes_out_at_once() {
        assert_eq!(unpack(&gzip(&[b'x'; 1001]), 1000).unwrap_err().code, Code::TooLarge);
        assert_eq!(unpack(&gzip(&[b'x'; 1000]), 1000).unwrap().0.len(), 1000);
        let bomb = gzip(&vec![0; usize::try_from(RATIO_FROM).unwrap() * 4]);
        let failure = unpack(&bomb, u64::MAX).unwrap_err();
        assert_eq!(failure.code, Code::TooLarge);
        assert!(failure.message.contains("250 times"), "{failure}");
        let (_, most) = unpack(&gzip(&vec![0; 8_000_000]), u64::MAX).unwrap();
        assert!(most <= SLICE * 1100, "{most} bytes at once");
    }

    #[test]
    fn what_is_no_gzip_or_ends_early_fails() {
        for packed in [b"plain text".to_vec(), gzip(b"some content")[..15].to_vec()] {
            assert_eq!(unpack(&packed, 1000).unwrap_err().code, Code::TargetProtocol);
        }
        let mut damaged = gzip(b"some content");
        let last = damaged.len() - 6;
        damaged[last] ^= 1;
        assert_eq!(
            unpack(&damaged, 1000).unwrap_err().code,
            Code::TargetProtocol,
            "its checksum is looked at"
        );
    }

    #[test]
    fn other_codings_and_parts_are_handed_on() {
        for (status, coding) in [(200, "br"), (200, "gzip, gzip"), (200, "identity"), (206, "gzip")] {
            let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
            assert!(
                Unpacker::of(StatusCode::from_u16(status).unwrap(), &headers, 9).is_none(),
                "{status} {coding}"
            );
        }
        let mut twice = HeaderMap::new();
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(Unpacker::of(StatusCode::OK, &twice, 9).is_none());
        assert!(Unpacker::of(StatusCode::OK, &HeaderMap::new(), 9).is_none());
    }
}
