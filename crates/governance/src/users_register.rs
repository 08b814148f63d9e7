//! A user's own register: what somebody's counsel has read, beside what is compiled in.
//!
//! Its rows are the user's statement and are shown as that. They fill gaps: an ID that the built-in
//! register does not know, or knows from memory only. Where both know an ID and differ, nobody is
//! right: the answer is `unknown`, and both are shown.

use std::collections::BTreeMap;

use stillroom_core::Digest;

use crate::error::Result;
use crate::identity::{Entry, IdTable};
use crate::register::{Grade, Grant, Register, Row, fault, parse_rows};

/// Bytes of a user's register that are read.
pub const REGISTER_BYTES_MAX: usize = 16 << 20;

/// Rows of the user's own.
#[derive(Clone, Debug)]
pub struct UsersRegister {
    name: String,
    digest: Digest,
    rows: Vec<Row>,
    ids: IdTable,
    /// Rows about releases of the built-in register, by name.
    releases: BTreeMap<String, usize>,
}

impl UsersRegister {
    /// Reads a table with the columns of the built-in one.
    pub(crate) fn parse(builtin: &Register, licences: &str, name: &str) -> Result<UsersRegister> {
        if licences.len() > REGISTER_BYTES_MAX {
            return Err(fault(0, "family", format!("more than {REGISTER_BYTES_MAX} bytes")));
        }
        let mut rows = parse_rows(licences.trim_start_matches('\u{feff}'))?;
        let (mut entries, mut releases) = (Vec::new(), BTreeMap::new());
        for (i, row) in rows.iter_mut().enumerate() {
            row.users = true;
            // Whatever was read, the statement is the user's.
            row.grade = row.grade.min(Grade::Declared);
            if builtin.rows().iter().any(|known| known.release == row.release) {
                releases.insert(row.release.clone(), i);
            } else if row.release.contains(char::is_whitespace) {
                let cause = format!(
                    "`{}` is no release of the built-in register, and no ID (`org/name`, `service:model`)",
                    row.release
                );
                return Err(fault(i + 1, "release", cause));
            } else {
                entries.push((i, Entry { row: i, patterns: vec![row.release.to_lowercase()] }));
            }
        }
        let (numbers, entries): (Vec<usize>, Vec<Entry>) = entries.into_iter().unzip();
        let ids = IdTable::new(entries)
            .map_err(|(entry, cause)| fault(numbers[entry - 1] + 1, "release", cause))?;
        Ok(UsersRegister {
            name: name.to_owned(),
            digest: Digest::of(licences.as_bytes()),
            rows,
            ids,
            releases,
        })
    }

    /// What its rows are said to be from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the table.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Every row, in the order of the table.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row about an ID, or about the release that the built-in register takes it for.
    pub(crate) fn find(&self, id: &str, builtin: Option<&Row>) -> Option<&Row> {
        let by_release = || builtin.and_then(|row| self.releases.get(&row.release).copied());
        self.ids.find(id).or_else(by_release).map(|row| &self.rows[row])
    }
}

/// What both registers say about one ID.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The row that counts, unless they are in conflict.
    pub counts: &'a Row,
    /// The other register's row.
    pub other: Option<&'a Row>,
    /// They differ, and neither gives way.
    pub in_conflict: bool,
}

impl<'a> Views<'a> {
    pub(crate) fn of(
        register: &Register,
        builtin: Option<&'a Row>,
        users: Option<&'a Row>,
    ) -> Option<Views<'a>> {
        let (Some(builtin), Some(users)) = (builtin, users) else {
            let counts = builtin.or(users)?;
            // A licence whose text was read does not grant more because somebody writes so.
            return Some(Views {
                counts,
                other: None,
                in_conflict: counts.users && exceeds(register, counts),
            });
        };
        if builtin.grade == Grade::Recall && users.grade > Grade::Recall {
            let in_conflict = exceeds(register, users);
            return Some(Views { counts: users, other: Some(builtin), in_conflict });
        }
        let agree = agree(builtin, users);
        let settles = agree && builtin.grade == Grade::Secondary && users.grade.speaks_for_itself();
        let (counts, other) = if settles { (users, builtin) } else { (builtin, users) };
        Some(Views { counts, other: Some(other), in_conflict: !agree })
    }
}

fn agree(one: &Row, other: &Row) -> bool {
    let is_free = |row: &Row| row.commercial != Grant::No;
    one.licence_parts() == other.licence_parts()
        && (one.outputs, one.weights) == (other.outputs, other.weights)
        && is_free(one) == is_free(other)
}

/// Whether a row grants what the text of its licence, as read, does not.
fn exceeds(register: &Register, row: &Row) -> bool {
    row.licence_parts().iter().filter_map(|part| register.terms(part)).any(|terms| {
        (terms.outputs == Grant::No && row.outputs != Grant::No)
            || (terms.weights == Grant::No && row.weights != Grant::No)
            || (terms.commercial == Grant::No && row.commercial != Grant::No)
    })
}
