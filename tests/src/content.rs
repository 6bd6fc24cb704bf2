//! Made-up content of any size with a known digest, and random numbers from a printed seed.

use aws_lc_rs::digest::{Context, Digest, SHA256};
use std::{
    fmt::Write as _,
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _never_fails = write!(text, "{byte:02x}");
        text
    })
}

fn hex_of(digest: &Digest) -> String {
    hex(digest.as_ref())
}

/// The same numbers for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts from `PASSERELLE_TEST_SEED`, or else from the clock, and prints the seed so that the run can be repeated.
    #[must_use]
    pub fn from_environment() -> Self {
        let clock = jiff::Timestamp::now().as_nanosecond() as u64;
        let seed = std::env::var("PASSERELLE_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock);
        eprintln!("seed: PASSERELLE_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next number (`SplitMix64`).
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

/// Content in a file, not in memory.
pub struct Content {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest in hex.
    pub sha256: String,
}

impl Content {
    /// Writes `size` bytes that do not repeat to a new file in `dir`.
    ///
    /// # Panics
    /// If the file cannot be written.
    #[must_use]
    pub fn write(dir: &Path, size: u64) -> Self {
        let path = dir.join(format!("content-{size}"));
        let mut file = File::create(&path).expect("a content file");
        let mut random = Random::new(size);
        let mut digest = Context::new(&SHA256);
        // A random block, made different for each of its repetitions: fast, and no two blocks are equal.
        let mut block: Vec<u8> = (0..131_072).flat_map(|_| random.number().to_le_bytes()).collect();
        let mut left = size;
        while left > 0 {
            block[..8].copy_from_slice(&left.to_le_bytes());
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            file.write_all(&block[..take]).expect("room for the content");
            digest.update(&block[..take]);
            left -= take as u64;
        }
        Self { path, size, sha256: hex_of(&digest.finish()) }
    }

    /// Size and digest of an existing file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut digest = Context::new(&SHA256);
        let mut size = 0;
        let mut block = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut block).expect("a readable file");
            if read == 0 {
                return Self { path: path.to_owned(), size, sha256: hex_of(&digest.finish()) };
            }
            digest.update(&block[..read]);
            size += read as u64;
        }
    }

    /// Size and digest of bytes in memory.
    #[must_use]
    pub fn digest(bytes: &[u8]) -> String {
        hex_of(&aws_lc_rs::digest::digest(&SHA256, bytes))
    }
}
