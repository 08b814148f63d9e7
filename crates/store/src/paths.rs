//! Names that stay within their directory.

use std::path::{Component, Path, PathBuf};

use crate::{Result, StoreError};

/// Longest relative path accepted, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// `root` joined with `relative`, refused unless `relative` is made of plain names only.
///
/// `..`, `.`, absolute paths, drive letters, backslashes, control characters and empty names are
/// [`StoreError::UnsafePath`]. The check is lexical.
///
/// ```
/// use stillroom_store::safe_join;
/// assert!(safe_join("/run".as_ref(), "corpus/traces/part-000000.parquet").is_ok());
/// assert!(safe_join("/run".as_ref(), "../secrets").is_err());
/// ```
pub fn safe_join(root: &Path, relative: &str) -> Result<PathBuf> {
    let refused = || StoreError::UnsafePath { name: relative.chars().take(200).collect() };
    let plain = !relative.is_empty()
        && relative.len() <= PATH_BYTES_MAX
        && relative.split('/').all(|name| !name.is_empty() && name != ".")
        && !relative.chars().any(|c| c == '\\' || c.is_control() || (cfg!(windows) && c == ':'))
        && Path::new(relative).components().all(|c| matches!(c, Component::Normal(_)));
    if plain { Ok(root.join(relative)) } else { Err(refused()) }
}

/// Refuses a name that is not a single plain component of letters, digits, `-`, `_` and `.`.
pub fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if plain { Ok(()) } else { Err(StoreError::UnsafePath { name: name.chars().take(200).collect() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_are_refused() {
        for bad in ["", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "a\0b", "a\nb"] {
            assert!(safe_join(Path::new("/run"), bad).is_err(), "{bad:?}");
        }
        assert_eq!(safe_join(Path::new("/run"), "a/b..c").unwrap(), Path::new("/run/a/b..c"));
        assert!(check_name("teach").is_ok());
        for bad in ["", ".lock", "a/b", "..", "é", &"x".repeat(101)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_inside(name in "[./a-c\\\\]{0,12}") {
            if let Ok(path) = safe_join(Path::new("/run"), &name) {
                let mut depth = 0;
                for part in path.components().skip(2) {
                    prop_assert!(matches!(part, Component::Normal(_)));
                    depth += 1;
                }
                prop_assert!(depth > 0 && path.starts_with("/run"));
            }
        }
    }
}
