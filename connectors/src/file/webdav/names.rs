//! Places as URLs, and back: every byte of a name is encoded on its way out, and what a server calls an item is taken
//! for a name only if it lies right in the folder that was asked for.

use crate::file::backend::{FsError, Problem};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

/// All bytes but RFC 3986's unreserved characters are encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The root folder of a resource.
#[derive(Debug, Clone)]
pub(super) struct Root {
    /// Scheme, host and port, without a path.
    origin: Url,
    /// The names of the folders down to the root, decoded.
    folders: Vec<String>,
}

impl Root {
    /// From the resource's own URL, with `http` or `https`. `None` if a name in it is not UTF-8.
    pub(super) fn new(url: &Url) -> Option<Self> {
        let mut folders = Vec::new();
        for name in url.path().split('/').filter(|name| !name.is_empty()) {
            folders.push(percent_decode_str(name).decode_utf8().ok()?.into_owned());
        }
        let mut origin = url.clone();
        origin.set_path("/");
        Some(Self { origin, folders })
    }

    /// The URL of a file.
    pub(super) fn file(&self, path: &str) -> Result<Url, FsError> {
        self.url(path, false)
    }

    /// The URL of a folder, with the slash at its end that some servers insist on.
    pub(super) fn folder(&self, path: &str) -> Result<Url, FsError> {
        self.url(path, true)
    }

    fn url(&self, path: &str, slash: bool) -> Result<Url, FsError> {
        // Encoded it would pass, but servers write names into logs and headers of their own.
        if path.contains(['\n', '\r']) {
            return Err(FsError::new(Problem::BadName, format!("{path:?} holds a line end")));
        }
        let mut text = String::new();
        for name in self.names(path) {
            text.push('/');
            text.extend(utf8_percent_encode(name, ENCODED));
        }
        if slash || text.is_empty() {
            text.push('/');
        }
        let mut url = self.origin.clone();
        url.set_path(&text);
        if url.path() == text {
            Ok(url)
        } else {
            // A name that the rules of URLs read as another place.
            Err(FsError::new(Problem::BadName, format!("{path:?} cannot be written as a URL")))
        }
    }

    fn names<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        self.folders.iter().map(String::as_str).chain(path.split('/').filter(|name| !name.is_empty()))
    }

    /// Scheme, host and port, and the decoded path: what recognises a folder again.
    pub(super) fn identity(&self, path: &str) -> (String, String) {
        let names: Vec<&str> = self.names(path).collect();
        (self.origin.origin().ascii_serialization(), format!("/{}", names.join("/")))
    }

    /// What an item in the answer about `folder` is.
    pub(super) fn member(&self, folder: &str, href: &str) -> Member {
        let Some(path) = path_of(href) else { return Member::Elsewhere };
        let decode = |name: &str| -> Vec<u8> { percent_decode_str(name).collect() };
        let mut names = path.split('/').filter(|name| !name.is_empty()).map(decode);
        for expected in self.names(folder) {
            if names.next().as_deref() != Some(expected.as_bytes()) {
                return Member::Elsewhere;
            }
        }
        match (names.next(), names.next()) {
            (None, _) => Member::Itself,
            (Some(name), None) if is_name(&name) => Member::Child(name),
            (Some(_), _) => Member::Elsewhere,
        }
    }
}

/// What an item of a listing is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// The folder itself.
    Itself,
    /// A name right in it.
    Child(Vec<u8>),
    /// Anything else: an honest server does not send that.
    Elsewhere,
}

/// The path of a reference: absolute with any host (behind a proxy a server may know itself by another name), or from
/// the server's root.
fn path_of(href: &str) -> Option<&str> {
    let rest = href.strip_prefix("http://").or_else(|| href.strip_prefix("https://"));
    let path = match rest {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => href,
    };
    path.starts_with('/').then(|| path.split(['?', '#']).next().unwrap_or_default())
}

/// Whether a decoded name can be that of one file or folder.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(url: &str) -> Root {
        Root::new(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn every_byte_of_a_name_is_encoded() {
        let root = root("http://dav.intra:8080/exports/a%20b/");
        let url = root.file("été/50% of #1?.csv").unwrap();
        assert_eq!(
            url.as_str(),
            "http://dav.intra:8080/exports/a%20b/%C3%A9t%C3%A9/50%25%20of%20%231%3F.csv"
        );
        assert_eq!(root.folder("").unwrap().as_str(), "http://dav.intra:8080/exports/a%20b/");
        assert_eq!(root.file("a\\b;c&d\"'<>").unwrap().path(), "/exports/a%20b/a%5Cb%3Bc%26d%22%27%3C%3E");
        for bad in ["two\nlines", "return\r"] {
            assert_eq!(root.file(bad).unwrap_err().problem, Problem::BadName, "{bad:?}");
        }
        assert_eq!(Root::new(&Url::parse("http://h/").unwrap()).unwrap().file("").unwrap().path(), "/");
    }

    #[test]
    fn only_direct_children_are_members() {
        let root = root("https://dav.intra/exports");
        for (href, expected) in [
            ("/exports/in/", Member::Itself),
            ("/exports/in", Member::Itself),
            ("https://other.example/exports/in/", Member::Itself),
            ("/exports/in/a%20b.csv", Member::Child(b"a b.csv".to_vec())),
            ("/exports/in/sub/", Member::Child(b"sub".to_vec())),
            ("/e%78ports/in/x?y#z", Member::Child(b"x".to_vec())),
            ("/exports/in/%ff", Member::Child(vec![0xff])),
            ("/exports/in/sub/deep.csv", Member::Elsewhere),
            ("/exports/in/%2e%2e", Member::Elsewhere),
            ("/exports/in/..", Member::Elsewhere),
            ("/exports/in/a%2Fb", Member::Elsewhere),
            ("/exports/in/a%00b", Member::Elsewhere),
            ("/exports", Member::Elsewhere),
            ("/etc/passwd", Member::Elsewhere),
            ("a.csv", Member::Elsewhere),
            ("file:///etc/passwd", Member::Elsewhere),
            ("", Member::Elsewhere),
        ] {
            assert_eq!(root.member("in", href), expected, "{href}");
        }
    }

    proptest! {
        #[test]
        fn a_name_comes_back_as_it_went(name in "[^/\u{0}\n\r]{1,40}") {
            prop_assume!(name != "." && name != "..");
            let root = root("http://h/r");
            let url = root.file(&name).unwrap();
            prop_assert_eq!(root.member("", url.path()), Member::Child(name.into_bytes()));
        }
    }
}
