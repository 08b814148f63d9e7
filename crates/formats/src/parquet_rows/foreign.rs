//! Rows of Parquet files that others wrote: the columns that are asked for, as JSON, one row at a time.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::columns::{failed, guarded, wrong};
use crate::error::{FormatError, Result};

/// Levels of lists and groups within a row.
const DEPTH_MAX: usize = 16;

/// The rows of a file, in order; after an error nothing follows.
pub struct ForeignRows {
    rows: RowIter<'static>,
    row_bytes_max: usize,
    done: bool,
}

impl ForeignRows {
    /// Opens a file for those of its columns that are in `wanted`. A row holds `row_bytes_max` bytes of text at most.
    ///
    /// # Errors
    /// Where it cannot be read, is no Parquet file, or has none of the columns.
    pub fn open(path: &Path, wanted: &[&str], row_bytes_max: usize) -> Result<ForeignRows> {
        let file = File::open(path).map_err(|source| FormatError::Io {
            action: "open",
            path: path.into(),
            source,
        })?;
        let rows = guarded(|| {
            let reader = SerializedFileReader::new(file).map_err(failed)?;
            let schema = reader.metadata().file_metadata().schema().clone();
            let fields: Vec<Arc<Type>> =
                schema.get_fields().iter().filter(|field| wanted.contains(&field.name())).cloned().collect();
            if fields.is_empty() {
                return Err(wrong(format!("none of the columns `{}`", wanted.join("`, `"))));
            }
            let chosen =
                Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(failed)?;
            RowIter::from_file_into(Box::new(reader)).project(Some(chosen)).map_err(failed)
        })?;
        Ok(ForeignRows { rows, row_bytes_max, done: false })
    }

    fn read(&mut self) -> Result<Option<Map<String, Value>>> {
        let rows = &mut self.rows;
        let row = guarded(|| rows.next().transpose().map_err(failed))?;
        let Some(row) = row else { return Ok(None) };
        let mut room = self.row_bytes_max;
        Ok(Some(object(row, &mut room, 0)?))
    }
}

impl Iterator for ForeignRows {
    type Item = Result<Map<String, Value>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.read();
        self.done = !matches!(row, Ok(Some(_)));
        row.transpose()
    }
}

/// Fields without a value are left out, as JSON lines leave them out.
fn object(row: Row, room: &mut usize, depth: usize) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for (name, field) in row.into_columns() {
        take(room, name.len())?;
        if !matches!(field, Field::Null) {
            fields.insert(name, json(field, room, depth)?);
        }
    }
    Ok(fields)
}

fn json(field: Field, room: &mut usize, depth: usize) -> Result<Value> {
    if depth > DEPTH_MAX {
        return Err(wrong(format!("rows are nested more than {DEPTH_MAX} levels deep")));
    }
    take(room, 1)?;
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => Number::from_f64(value.into()).map_or(Value::Null, Value::Number),
        Field::Double(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        Field::Str(text) => {
            take(room, text.len())?;
            text.into()
        }
        Field::Bytes(bytes) => {
            take(room, bytes.len())?;
            let text = std::str::from_utf8(bytes.data()).map_err(|_| wrong("text that is not UTF-8"))?;
            text.into()
        }
        Field::Group(row) => Value::Object(object(row, room, depth + 1)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().cloned().map(|item| json(item, room, depth + 1));
            Value::Array(items.collect::<Result<_>>()?)
        }
        Field::MapInternal(map) => {
            let mut fields = Map::new();
            for (key, value) in map.entries() {
                if let Field::Str(key) = key {
                    take(room, key.len())?;
                    fields.insert(key.clone(), json(value.clone(), room, depth + 1)?);
                }
            }
            Value::Object(fields)
        }
        // Dates and the like are written out.
        other => other.to_string().into(),
    })
}

fn take(room: &mut usize, bytes: usize) -> Result<()> {
    match room.checked_sub(bytes) {
        Some(rest) => {
            *room = rest;
            Ok(())
        }
        None => Err(wrong("a row is too long")),
    }
}
