//! The model hub's interface: what a repository holds, and its files' bytes.
//!
//! Everything that the hub says is foreign: lists are capped, names are checked before anybody sees
//! them, and a file's bytes are the caller's to verify against its [`ContentId`].

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use stillroom_core::Reach;

use crate::Result;
use crate::client::{Client, Request, Response, Secret};
use crate::content::ContentId;
use crate::error::{NetError, shown};
use crate::url::{Address, encode_component, encode_path};

/// Where the hub is, unless told otherwise.
pub const ENDPOINT: &str = "https://huggingface.co";
/// Domains that the hub keeps large files under.
const STORES: [&str; 2] = ["https://*.huggingface.co", "https://*.hf.co"];
/// Bytes of a repository's description.
pub const DESCRIPTION_BYTES_MAX: u64 = 32 << 20;
/// Files of a repository.
pub const FILES_MAX: usize = 50_000;
/// Bytes of a file's name.
pub const NAME_BYTES_MAX: usize = 512;
/// Folders that a file may stand in.
const DEPTH_MAX: usize = 16;
/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 1 << 42;
/// Bytes of an organisation's, a model's or a revision's name.
const ID_BYTES_MAX: usize = 96;

/// `ORG/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryId {
    organisation: String,
    name: String,
}

impl RepositoryId {
    /// Letters, digits, `-`, `_` and `.` in both parts, as the hub allows them.
    pub fn parse(text: &str) -> Result<RepositoryId> {
        let plain = |part: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let ends = part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
            let doubled = part.contains("--") || part.contains("..");
            (1..=ID_BYTES_MAX).contains(&part.len()) && part.bytes().all(known) && !ends && !doubled
        };
        match text.split_once('/') {
            Some((organisation, name)) if plain(organisation) && plain(name) => {
                Ok(RepositoryId { organisation: organisation.to_owned(), name: name.to_owned() })
            }
            _ => Err(NetError::BadRepository { name: shown(text) }),
        }
    }

    /// Its folder in the hub's cache: `models--ORG--NAME`.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)
    }
}

/// Whether `name` can be a branch, a tag or a commit.
pub fn check_revision(name: &str) -> Result<()> {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+');
    let plain = (1..=ID_BYTES_MAX).contains(&name.len())
        && name.bytes().all(known)
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    if plain { Ok(()) } else { Err(NetError::BadRevision { name: shown(name) }) }
}

/// Whether `text` is a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    pub id: RepositoryId,
    /// 40 hexadecimal digits.
    pub commit: String,
    /// By name; no two clash on disk.
    pub files: Vec<ListedFile>,
}

/// A file as the repository's description lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// A plain relative path with `/`.
    pub name: String,
    pub bytes: Option<u64>,
    pub content: Option<ContentId>,
}

/// A file whose length and content are known, so that its bytes can be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub name: String,
    pub bytes: u64,
    pub content: ContentId,
}

/// Bytes of a file on their way.
#[derive(Debug)]
pub struct Download {
    /// Where in the file they begin: where asked, or 0 if the server does not continue.
    pub from: u64,
    pub response: Response,
}

/// A hub that may be asked.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    endpoint: String,
    token: Option<Secret>,
}

/// What asking at `endpoint` takes: itself, and for the public hub the stores of its large files.
pub fn reach(endpoint: &str) -> Result<Reach> {
    let bad = |fault| NetError::BadAddress { fault };
    let address = Address::parse(endpoint)?;
    let stores = STORES.iter().copied().filter(|_| !address.origin().is_loopback());
    Reach::of(std::iter::once(endpoint).chain(stores)).map_err(bad)
}

impl Hub {
    /// A hub at `endpoint`. The token goes to the endpoint's own origin and nowhere else.
    pub fn new(client: Client, endpoint: &str, token: Option<Secret>) -> Result<Hub> {
        let address = Address::parse(endpoint)?;
        if endpoint.contains(['?', '#']) {
            return Err(NetError::BadPath { place: address.place() });
        }
        Ok(Hub { client, endpoint: endpoint.trim_end_matches('/').to_owned(), token })
    }

    /// What `id` holds at `revision`.
    pub fn repository(&self, id: &RepositoryId, revision: &str) -> Result<Repository> {
        check_revision(revision)?;
        let revision = encode_component(revision);
        let address =
            Address::parse(&format!("{}/api/models/{id}/revision/{revision}?blobs=true", self.endpoint))?;
        let request = Request::get(address).bearer(self.token.as_ref()).header("accept", "application/json");
        let response = self.client.send(&request)?.success()?;
        let place = response.place().to_owned();
        let bytes = response.read_to_vec(DESCRIPTION_BYTES_MAX)?;
        parse(id, &place, &bytes)
    }

    /// Length and content of a file, asked of the hub where the description does not say.
    pub fn describe(&self, repository: &Repository, file: &ListedFile) -> Result<RemoteFile> {
        let known = |bytes, content| RemoteFile { name: file.name.clone(), bytes, content };
        if let (Some(bytes), Some(content)) = (file.bytes, file.content) {
            return Ok(known(bytes, content));
        }
        let address = self.address_of(repository, &file.name)?;
        let response = self.client.send(&Request::head(address).bearer(self.token.as_ref()).stay())?;
        if response.status() >= 400 {
            return Err(response.status_error());
        }
        check_commit(repository, &response)?;
        let place = response.place();
        let content = content_of(&response)
            .ok_or_else(|| NetError::bad_reply(place, "no entity tag that names the content"))?;
        let length = response.first_header("x-linked-size").or_else(|| response.header("content-length"));
        let bytes = length.and_then(|text| text.trim().parse().ok()).filter(|&n| n <= FILE_BYTES_MAX);
        let bytes =
            bytes.ok_or_else(|| NetError::bad_reply(place, "no length, or one beyond all measure"))?;
        Ok(known(bytes, content))
    }

    /// The bytes of a file beginning at `from`.
    pub fn open(&self, repository: &Repository, file: &RemoteFile, from: u64) -> Result<Download> {
        assert!(from <= file.bytes, "a download begins inside its file");
        let mut request = Request::get(self.address_of(repository, &file.name)?).bearer(self.token.as_ref());
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = self.client.send(&request)?.success()?;
        check_commit(repository, &response)?;
        if content_of(&response).is_some_and(|content| content != file.content) {
            return Err(NetError::bad_reply(
                response.place(),
                "the entity tag is not the one that the repository's description names",
            ));
        }
        let from = if response.status() == 206 { from } else { 0 };
        let place = response.place().to_owned();
        if response.status() == 206 {
            let expected = Some((from, file.bytes));
            let given = response.header("content-range").and_then(content_range);
            if given != expected {
                return Err(NetError::bad_reply(&place, "the reply is not the range that was asked for"));
            }
        }
        if response.content_length().is_some_and(|n| n != file.bytes - from) {
            let cause = format!("the file is not {} bytes long, as it is listed", file.bytes);
            return Err(NetError::bad_reply(&place, cause));
        }
        Ok(Download { from, response })
    }

    fn address_of(&self, repository: &Repository, name: &str) -> Result<Address> {
        let Repository { id, commit, .. } = repository;
        Address::parse(&format!("{}/{id}/resolve/{commit}/{}", self.endpoint, encode_path(name)))
    }
}

/// The content that the hub's own reply names. Tags of a store after a redirect are the store's.
fn content_of(response: &Response) -> Option<ContentId> {
    let linked = response.first_header("x-linked-etag");
    linked.or_else(|| response.first_header("etag")).and_then(ContentId::of_etag)
}

fn check_commit(repository: &Repository, response: &Response) -> Result<()> {
    match response.first_header("x-repo-commit") {
        Some(commit) if commit != repository.commit => {
            Err(NetError::bad_reply(response.place(), "the reply is of another commit than was asked for"))
        }
        _ => Ok(()),
    }
}

/// `bytes 5-9/10` → (5, 10), where the range goes to the end.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, whole): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, whole.parse().ok()?);
    (first <= last && last.checked_add(1) == Some(whole)).then_some((first, whole))
}

#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Reads a repository's description, refusing it whole where one name is unsafe.
fn parse(id: &RepositoryId, place: &str, bytes: &[u8]) -> Result<Repository> {
    let read: Description = serde_json::from_slice(bytes).map_err(|e| {
        NetError::bad_reply(place, format!("not a repository's description: {}", shown(&e.to_string())))
    })?;
    if !is_commit(&read.sha) {
        return Err(NetError::bad_reply(place, "the repository's description names no commit"));
    }
    if read.siblings.len() > FILES_MAX {
        return Err(NetError::bad_reply(place, format!("the repository has more than {FILES_MAX} files")));
    }
    let mut files = Vec::with_capacity(read.siblings.len());
    for sibling in read.siblings {
        check_name(&sibling.rfilename)?;
        let (bytes, content) = match &sibling.lfs {
            Some(lfs) => (lfs.size.or(sibling.size), lfs.sha256.as_deref().and_then(ContentId::of_etag)),
            None => (sibling.size, sibling.blob_id.as_deref().and_then(ContentId::of_etag)),
        };
        if bytes.is_some_and(|n| n > FILE_BYTES_MAX) {
            return Err(NetError::TooLarge { place: place.to_owned(), bytes_max: FILE_BYTES_MAX });
        }
        files.push(ListedFile { name: sibling.rfilename, bytes, content });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    refuse_clashes(&files)?;
    Ok(Repository { id: id.clone(), commit: read.sha, files })
}

/// A plain path inside its repository: no `..`, no absolute path, no control characters.
pub fn check_name(name: &str) -> Result<()> {
    let parts = || name.split('/');
    let plain = (1..=NAME_BYTES_MAX).contains(&name.len())
        && parts().count() <= DEPTH_MAX
        && parts().all(|part| !part.is_empty() && part != "." && part != "..")
        && !name.chars().any(|c| c == '\\' || c.is_control() || (cfg!(windows) && c == ':'));
    if plain { Ok(()) } else { Err(NetError::UnsafeName { name: shown(name) }) }
}

/// No name twice, and no file where another file needs a folder.
fn refuse_clashes(files: &[ListedFile]) -> Result<()> {
    let mut names = BTreeSet::new();
    for file in files {
        if !names.insert(file.name.as_str()) {
            return Err(NetError::UnsafeName { name: shown(&file.name) });
        }
    }
    for file in files {
        for (at, _) in file.name.match_indices('/') {
            if names.contains(&file.name[..at]) {
                return Err(NetError::UnsafeName { name: shown(&file.name) });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn read(siblings: serde_json::Value) -> Result<Repository> {
        let text = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        parse(&RepositoryId::parse("o/n").unwrap(), "https://hub.example", text.as_bytes())
    }

    #[test]
    fn a_description_gives_length_and_content_of_small_and_large_files() {
        let (git, sha) = ("a".repeat(40), "b".repeat(64));
        let repository = read(json!([
            { "rfilename": "model.safetensors", "size": 9, "blobId": git, "lfs": { "sha256": sha, "size": 9, "pointerSize": 1 } },
            { "rfilename": "config.json", "size": 3, "blobId": git },
            { "rfilename": "bare" },
        ]))
        .unwrap();
        let shown: Vec<_> = repository
            .files
            .iter()
            .map(|f| (f.name.as_str(), f.bytes, f.content.map(|c| c.to_string())))
            .collect();
        assert_eq!(
            shown,
            [
                ("bare", None, None),
                ("config.json", Some(3), Some(git)),
                ("model.safetensors", Some(9), Some(sha))
            ]
        );
    }

    #[test]
    fn names_that_leave_the_folder_or_clash_are_refused() {
        for bad in ["..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "a\u{0}b", "a\nb", ""]
        {
            let refused = read(json!([{ "rfilename": "config.json" }, { "rfilename": bad }]));
            assert!(matches!(refused, Err(NetError::UnsafeName { .. })), "{bad:?}");
        }
        for pair in [["a", "a"], ["a", "a/b"], ["a/b", "a/b/c/d"]] {
            let refused = read(json!([{ "rfilename": pair[0] }, { "rfilename": pair[1] }]));
            assert!(matches!(refused, Err(NetError::UnsafeName { .. })), "{pair:?}");
        }
        assert!(read(json!([{ "rfilename": "a-b" }, { "rfilename": "a/b..c" }])).is_ok());
    }

    #[test]
    fn malformed_descriptions_are_errors() {
        let id = RepositoryId::parse("o/n").unwrap();
        for bad in ["", "[]", "{}", r#"{"sha":"../x"}"#, r#"{"sha":5}"#, r#"{"sha":"0","siblings":[{}]}"#] {
            assert!(matches!(parse(&id, "p", bad.as_bytes()), Err(NetError::BadReply { .. })), "{bad}");
        }
        assert!(matches!(
            read(json!([{ "rfilename": "a", "size": FILE_BYTES_MAX + 1 }])),
            Err(NetError::TooLarge { .. })
        ));
    }

    #[test]
    fn repositories_and_revisions_have_plain_names() {
        assert_eq!(RepositoryId::parse("Qwen/Qwen2.5-0.5B").unwrap().folder(), "models--Qwen--Qwen2.5-0.5B");
        for bad in ["", "x", "a/b/c", "../x", "a/..", "a/.b", "a/b c", "a/b--c", "a/b?x", "é/x", "/x", "x/"]
        {
            assert!(RepositoryId::parse(bad).is_err(), "{bad}");
        }
        for good in ["main", "refs/pr/1", "v1.0", COMMIT] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/../b", "/a", "a b", "a//b", ".x", "a.lock", "é"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_do_not_reach_the_end_are_not_taken() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in [
            "bytes 5-8/10",
            "bytes 9-5/10",
            "bytes */10",
            "5-9/10",
            "bytes 5-9/*",
            "bytes 0-18446744073709551615/0",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_public_hub_takes_its_stores_and_a_stand_in_only_itself() {
        let permits = |endpoint: &str, url: &str| {
            reach(endpoint).unwrap().permits(&stillroom_core::Origin::of_url(url).unwrap())
        };
        assert!(permits(ENDPOINT, "https://cdn-lfs.hf.co/x") && permits(ENDPOINT, "https://huggingface.co"));
        assert!(!permits(ENDPOINT, "https://hf.co.example/x"));
        assert!(!permits("http://127.0.0.1:9", "https://cdn-lfs.hf.co/x"));
        assert!(!permits("http://127.0.0.1:9", "http://127.0.0.1:8"));
        assert!(reach("http://hub.example").is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_inside(name in "[./a-c\\\\]{0,12}") {
            if check_name(&name).is_ok() {
                let plain = |c| matches!(c, std::path::Component::Normal(_));
                prop_assert!(std::path::Path::new(&name).components().all(plain));
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let id = RepositoryId::parse("o/n").unwrap();
            prop_assert!(parse(&id, "p", &bytes).is_err());
        }
    }
}
