//! What the answers of a store are, and what its errors mean.

use super::xml;
use crate::file::backend::{FsError, Problem};
use reqwest::{Method, StatusCode};
use std::time::Duration;

/// What an answer is called, and a child of it by which it is known where a store calls it otherwise (moto says
/// `ListPartsResponse`).
#[derive(Clone, Copy)]
pub(super) struct Root(pub(super) &'static str, pub(super) &'static str);

impl Root {
    /// Whether an element shows that the answer is of this kind. An `Error` repeats what it was asked about.
    pub(super) fn is_shown_by(self, path: &[&str]) -> bool {
        match path {
            ["Error", ..] => false,
            [root, child] => *root == self.0 || *child == self.1,
            [root, ..] => *root == self.0,
            [] => false,
        }
    }

    /// Gives each element of the answer to `each`; what the store says instead if it is an error of its own.
    pub(super) fn read(
        self,
        body: &[u8],
        mut each: impl FnMut(&[&str], &str) -> Result<(), FsError>,
    ) -> Result<Option<Said>, FsError> {
        let mut said = Said::default();
        let (mut shown, mut name) = (false, String::new());
        xml::read(body, |path, text| {
            said.take(path, text);
            shown |= self.is_shown_by(path);
            match path {
                // The last to end, so what it holds is known by now.
                [root] if !shown => (*root).clone_into(&mut name),
                ["Error", ..] => {}
                _ => each(path, text)?,
            }
            Ok(())
        })?;
        if said.code.is_some() {
            return Ok(Some(said));
        }
        if shown { Ok(None) } else { Err(xml::wrong(format!("asked for {}, it sends {name}", self.0))) }
    }
}

/// What an `Error` says.
#[derive(Debug, Default)]
pub(super) struct Said {
    code: Option<String>,
    message: String,
    region: Option<String>,
}

impl Said {
    pub(super) fn take(&mut self, path: &[&str], text: &str) {
        match path {
            ["Error", "Code"] => self.code = Some(text.trim().to_owned()),
            ["Error", "Message"] => text.trim().clone_into(&mut self.message),
            ["Error", "Region"] => self.region = Some(text.trim().to_owned()),
            _ => {}
        }
    }

    pub(super) fn error(
        self,
        method: &Method,
        key: Option<&str>,
        status: StatusCode,
        after: Option<Duration>,
    ) -> FsError {
        let code = self.code.unwrap_or_default();
        let problem = problem(&code, status.as_u16());
        let region =
            self.region.map(|region| format!("; the bucket's region is {region}")).unwrap_or_default();
        let detail = format!(
            "{method} {}: the object store answered {status} {code} {}{region}",
            key.unwrap_or("the bucket"),
            self.message
        );
        FsError { retry_after: after.filter(|_| problem == Problem::Busy), ..FsError::new(problem, detail) }
    }
}

/// What a store's own word means, or its status where it has none.
pub(super) fn problem(code: &str, status: u16) -> Problem {
    match code {
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "NotSignedUp"
        | "AccountProblem"
        | "InvalidSecurity"
        | "AuthorizationHeaderMalformed" => Problem::Auth,
        "RequestTimeTooSkewed" | "RequestExpired" => Problem::Clock,
        "AccessDenied" | "AllAccessDisabled" | "InvalidObjectState" => Problem::Refused,
        "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NoSuchVersion" => Problem::NotFound,
        "PreconditionFailed" => Problem::Exists,
        "ConditionalRequestConflict" | "OperationAborted" => Problem::Locked,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException" => Problem::Busy,
        "EntityTooLarge" => Problem::TooLarge,
        "KeyTooLongError" => Problem::NameTooLong,
        "InvalidObjectName" | "XMinioInvalidObjectName" => Problem::BadName,
        "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded" => Problem::Quota,
        "XMinioStorageFull" | "InsufficientStorage" | "ServiceStorageFull" => Problem::Full,
        "NotImplemented" => Problem::Unsupported,
        "RequestTimeout" => Problem::TimedOut,
        "InternalError" => Problem::Other,
        _ => match status {
            401 | 407 => Problem::Auth,
            403 => Problem::Refused,
            404 | 410 => Problem::NotFound,
            405 | 501 => Problem::Unsupported,
            408 => Problem::TimedOut,
            409 => Problem::Locked,
            412 => Problem::Exists,
            413 => Problem::TooLarge,
            414 => Problem::NameTooLong,
            429 | 503 => Problem::Busy,
            507 => Problem::Full,
            // Of something between us and the store: what the store did is not known.
            502 | 504 => Problem::Lost,
            400..600 => Problem::Other,
            // Redirections among them: they are never followed.
            _ => Problem::Protocol,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_word_counts_before_its_status() {
        for (code, status, expected) in [
            ("InvalidAccessKeyId", 403, Problem::Auth),
            ("SignatureDoesNotMatch", 403, Problem::Auth),
            ("RequestTimeTooSkewed", 403, Problem::Clock),
            ("AccessDenied", 403, Problem::Refused),
            ("NoSuchUpload", 404, Problem::NotFound),
            ("PreconditionFailed", 412, Problem::Exists),
            ("ConditionalRequestConflict", 409, Problem::Locked),
            ("SlowDown", 503, Problem::Busy),
            ("QuotaExceeded", 409, Problem::Quota),
            ("XMinioStorageFull", 507, Problem::Full),
            ("EntityTooLarge", 400, Problem::TooLarge),
            ("", 301, Problem::Protocol),
            ("", 403, Problem::Refused),
            ("", 404, Problem::NotFound),
            ("", 412, Problem::Exists),
            ("", 500, Problem::Other),
            ("", 502, Problem::Lost),
            ("", 503, Problem::Busy),
            ("Unheard", 400, Problem::Other),
        ] {
            assert_eq!(problem(code, status), expected, "{code} {status}");
        }
    }

    #[test]
    fn an_answer_is_known_by_what_it_holds_where_it_has_another_name() {
        let parts = Root("ListPartsResult", "UploadId");
        let read = |body: &str| {
            let mut numbers = Vec::new();
            let said = parts.read(body.as_bytes(), |path, text| {
                if let [_, "Part", "PartNumber"] = path {
                    numbers.push(text.to_owned());
                }
                Ok(())
            });
            (said, numbers)
        };
        let inside = "<Bucket>b</Bucket><Key>in/a.csv</Key><UploadId>u1</UploadId><MaxParts>1000</MaxParts>\
                      <IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag><Size>5</Size></Part>";
        // The first is Amazon's, the second moto's.
        for root in ["ListPartsResult", "ListPartsResponse"] {
            let xmlns = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
            let (said, numbers) = read(&format!("<?xml version=\"1.0\"?><{root} {xmlns}>{inside}</{root}>"));
            assert!(said.unwrap().is_none(), "{root}");
            assert_eq!(numbers, ["1"], "{root}");
        }
        for (body, name) in [
            ("<html><head><title>Log in</title></head><body><p>UploadId</p></body></html>", "it sends html"),
            ("<Error><UploadId>u1</UploadId></Error>", "it sends Error"),
            ("<a><b><UploadId>u1</UploadId></b></a>", "it sends a"),
        ] {
            let error = read(body).0.unwrap_err();
            assert_eq!(error.problem, Problem::Protocol);
            assert!(error.detail.contains(name), "{}", error.detail);
        }
        let gone = "<Error><Code>NoSuchUpload</Code><UploadId>u1</UploadId></Error>";
        assert_eq!(read(gone).0.unwrap().unwrap().code.as_deref(), Some("NoSuchUpload"));
    }
}
