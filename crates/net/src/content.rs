//! Files named by their content, as git and git-lfs name them.

use std::fmt;

use sha1::{Digest as _, Sha1};
use stillroom_core::{Digest, Digester};

/// What a file's bytes must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentId {
    /// SHA-256 of the bytes: large files.
    Sha256(Digest),
    /// Git's name of a blob, SHA-1 of `blob LENGTH\0` and the bytes: small files. It catches accidents;
    /// against forgery it is as good as SHA-1 with chosen prefixes, that is, weak.
    GitBlob([u8; 20]),
}

impl ContentId {
    /// From an entity tag: quotes and the mark of weak tags are dropped, 64 or 40 hexadecimal digits stay.
    ///
    /// ```
    /// use stillroom_net::ContentId;
    /// let id = ContentId::of_etag("W/\"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\"").unwrap();
    /// assert_eq!(id.to_string(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    /// assert!(ContentId::of_etag("../x").is_none());
    /// ```
    pub fn of_etag(etag: &str) -> Option<ContentId> {
        let text = etag.trim();
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"').to_ascii_lowercase();
        if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match text.len() {
            64 => Digest::try_from(text).ok().map(ContentId::Sha256),
            40 => {
                let mut bytes = [0u8; 20];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
                }
                Some(ContentId::GitBlob(bytes))
            }
            _ => None,
        }
    }
}

/// Lower-case hexadecimal digits: the name of the blob in the cache.
impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentId::Sha256(digest) => digest.fmt(f),
            ContentId::GitBlob(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Computes a [`ContentId`] piece by piece.
#[derive(Clone)]
pub enum ContentHasher {
    Sha256(Digester),
    GitBlob(Sha1),
}

impl ContentHasher {
    /// For content of the same kind as `id` and of a known length.
    pub fn like(id: &ContentId, bytes: u64) -> ContentHasher {
        match id {
            ContentId::Sha256(_) => ContentHasher::Sha256(Digester::new()),
            ContentId::GitBlob(_) => {
                let mut sha1 = Sha1::new();
                sha1.update(format!("blob {bytes}\0").as_bytes());
                ContentHasher::GitBlob(sha1)
            }
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            ContentHasher::Sha256(digester) => digester.update(bytes),
            ContentHasher::GitBlob(sha1) => sha1.update(bytes),
        }
    }

    pub fn finish(self) -> ContentId {
        match self {
            ContentHasher::Sha256(digester) => ContentId::Sha256(digester.finish()),
            ContentHasher::GitBlob(sha1) => ContentId::GitBlob(sha1.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &ContentId, bytes: &[u8]) -> ContentId {
        let mut hasher = ContentHasher::like(id, bytes.len() as u64);
        bytes.chunks(3).for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn git_and_sha256_name_known_contents() {
        // `printf 'what is up, doc?' | git hash-object --stdin`, from the Git book.
        let git = ContentId::of_etag("\"bd9dbf5aae1a3862dd1526723246b20206e5fc37\"").unwrap();
        assert_eq!(of(&git, b"what is up, doc?"), git);
        assert_ne!(of(&git, b"what is up, doc!"), git);
        let sha =
            ContentId::of_etag("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").unwrap();
        assert_eq!(of(&sha, b""), sha);
    }

    #[test]
    fn other_tags_name_nothing() {
        for bad in
            ["", "\"\"", "abc", &"g".repeat(40), &"é".repeat(20), &"a".repeat(65), "../../../etc/passwd"]
        {
            assert_eq!(ContentId::of_etag(bad), None, "{bad}");
        }
    }
}
