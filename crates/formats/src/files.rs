//! Reading whole files with a cap, mapping large ones, and writing so that nothing half-written
//! keeps a final name.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};

/// A file's bytes, mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps a regular file.
    pub fn open(path: &Path) -> Result<MappedFile> {
        let file = open_regular(path).map_err(FormatError::io("open", path))?;
        let len = file.metadata().map_err(FormatError::io("read", path))?.len();
        if len == 0 {
            return Ok(MappedFile { map: None });
        }
        #[expect(unsafe_code, reason = "the one audited memory map")]
        // SAFETY: the mapping is read-only and private to this value. It is sound as long as no
        // one truncates or rewrites the file while it is mapped: writers of this program put a
        // new file under the name (rename) and never change one in place. Every reader treats
        // the bytes as untrusted and checks each offset against the length taken here.
        let map = unsafe { memmap2::Mmap::map(&file) };
        Ok(MappedFile { map: Some(map.map_err(FormatError::io("map", path))?) })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

/// Opens a file, but no pipe or device, which could block or never end.
fn open_regular(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

/// The text of a file of at most `limit` bytes; `None` if there is no such file.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>> {
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FormatError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FormatError::io("read", path))?;
    if bytes.len() as u64 > limit {
        let value = fs::metadata(path).map_or(limit + 1, |metadata| metadata.len());
        return Err(FormatError::TooLarge { what: "file size".to_owned(), value, limit }.in_file(path));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| FormatError::malformed("text file", error.to_string()).in_file(path))
}

/// A file under a temporary name in its final directory. [`StagedFile::commit`] gives it its
/// name; dropping it uncommitted deletes it.
pub(crate) struct StagedFile {
    writer: BufWriter<File>,
    staged: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl StagedFile {
    pub(crate) fn create(path: &Path) -> Result<StagedFile> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.partial", std::process::id()));
        let staged = path.with_file_name(name);
        let file = File::create(&staged).map_err(FormatError::io("create", &staged))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(StagedFile { writer, staged, path: path.to_owned(), committed: false })
    }

    pub(crate) fn with_text(path: &Path, text: &str) -> Result<StagedFile> {
        let mut file = StagedFile::create(path)?;
        file.write(text.as_bytes())?;
        Ok(file)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(FormatError::io("write", &self.path))
    }

    /// For code that wants a `Write + Seek`.
    pub(crate) fn writer(&mut self) -> &mut BufWriter<File> {
        &mut self.writer
    }

    /// Flushes, syncs and renames.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.writer.flush().map_err(FormatError::io("write", &self.path))?;
        self.writer.get_ref().sync_all().map_err(FormatError::io("sync", &self.path))?;
        fs::rename(&self.staged, &self.path).map_err(FormatError::io("rename", &self.path))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing to do if even this fails: the name says what it is.
            let _ = fs::remove_file(&self.staged);
        }
    }
}
