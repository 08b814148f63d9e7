//! Columns in and out of Parquet, by name, with every length checked.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as Physical, ZstdLevel};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use crate::error::{FormatError, Result, without_panic};

/// Rows of one row group that a reader takes.
const GROUP_ROWS_MAX: usize = 1 << 22;
const ZSTD_LEVEL: i32 = 3;

pub(super) fn wrong(what: impl Into<String>) -> FormatError {
    FormatError::malformed("Parquet", what)
}

/// Runs a reader of the `parquet` crate, whose decoders panic on some damaged pages.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    without_panic(read, || wrong("a page is damaged"))
}

pub(super) fn failed(error: ParquetError) -> FormatError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => FormatError::Write(*error),
            Err(other) => wrong(other.to_string()),
        },
        other => wrong(other.to_string()),
    }
}

/// Encodings of columns that are better off without a dictionary.
#[derive(Default)]
pub(super) struct Pages {
    pub(super) plain: Vec<(&'static str, Encoding)>,
}

/// A Parquet file being written.
pub(super) struct Table<W: Write + Send> {
    writer: SerializedFileWriter<W>,
}

impl<W: Write + Send> Table<W> {
    pub(super) fn create(out: W, schema: &str, pages: Pages) -> Result<Table<W>> {
        let schema = Arc::new(parse_message_type(schema).map_err(failed)?);
        let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(failed)?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by("stillroom".to_owned());
        for (column, encoding) in pages.plain {
            let path = ColumnPath::from(column.split('.').map(str::to_owned).collect::<Vec<_>>());
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, encoding);
        }
        let writer = SerializedFileWriter::new(out, schema, Arc::new(properties.build())).map_err(failed)?;
        Ok(Table { writer })
    }

    pub(super) fn row_group(&mut self) -> Result<RowGroup<'_, W>> {
        Ok(RowGroup { writer: self.writer.next_row_group().map_err(failed)? })
    }

    /// Writes the footer with these entries.
    pub(super) fn close(self, metadata: &[(&str, String)]) -> Result<()> {
        self.into_inner(metadata).map(drop)
    }

    /// The same; returns what it was written to.
    pub(super) fn into_inner(mut self, metadata: &[(&str, String)]) -> Result<W> {
        for (key, value) in metadata {
            self.writer.append_key_value_metadata(KeyValue::new((*key).to_owned(), value.clone()));
        }
        self.writer.into_inner().map_err(failed)
    }
}

/// A row group being written, column after column in the order of the schema.
pub(super) struct RowGroup<'a, W: Write + Send> {
    writer: SerializedRowGroupWriter<'a, W>,
}

impl<W: Write + Send> RowGroup<'_, W> {
    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        levels: Option<(&[i16], Option<&[i16]>)>,
    ) -> Result<()> {
        let mut column =
            self.writer.next_column().map_err(failed)?.expect("as many columns as the schema has");
        let (definition, repetition) = levels.map_or((None, None), |(d, r)| (Some(d), r));
        column.typed::<T>().write_batch(values, definition, repetition).map_err(failed)?;
        column.close().map_err(failed)
    }

    pub(super) fn strings<'s>(&mut self, values: impl Iterator<Item = &'s str>) -> Result<()> {
        let values: Vec<ByteArray> = values.map(ByteArray::from).collect();
        self.column::<ByteArrayType>(&values, None)
    }

    pub(super) fn optional_strings<'s>(
        &mut self,
        values: impl Iterator<Item = Option<&'s str>>,
    ) -> Result<()> {
        let all: Vec<Option<&str>> = values.collect();
        let defined: Vec<i16> = all.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<ByteArray> = all.into_iter().flatten().map(ByteArray::from).collect();
        self.column::<ByteArrayType>(&values, Some((&defined, None)))
    }

    pub(super) fn numbers(&mut self, values: impl Iterator<Item = u32>) -> Result<()> {
        let values: Vec<i32> = values.map(u32::cast_signed).collect();
        self.column::<Int32Type>(&values, None)
    }

    pub(super) fn doubles(&mut self, values: impl Iterator<Item = f64>) -> Result<()> {
        let values: Vec<f64> = values.collect();
        self.column::<DoubleType>(&values, None)
    }

    pub(super) fn number_lists(
        &mut self,
        lists: impl Iterator<Item = impl Iterator<Item = u32>>,
    ) -> Result<()> {
        let (values, defined, repeated) = levels(lists.map(|list| list.map(u32::cast_signed)));
        self.column::<Int32Type>(&values, Some((&defined, Some(&repeated))))
    }

    pub(super) fn float_lists(
        &mut self,
        lists: impl Iterator<Item = impl Iterator<Item = f32>>,
    ) -> Result<()> {
        let (values, defined, repeated) = levels(lists);
        self.column::<FloatType>(&values, Some((&defined, Some(&repeated))))
    }

    pub(super) fn close(self) -> Result<()> {
        self.writer.close().map_err(failed)?;
        Ok(())
    }
}

/// Values, definition levels, repetition levels.
type Levelled<T> = (Vec<T>, Vec<i16>, Vec<i16>);

/// Values with definition levels (0: an empty list) and repetition levels (0: a new list).
fn levels<T>(lists: impl Iterator<Item = impl Iterator<Item = T>>) -> Levelled<T> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        let start = values.len();
        values.extend(list);
        let len = values.len() - start;
        defined.push(i16::from(len > 0));
        repeated.push(0);
        for _ in 1..len {
            defined.push(1);
            repeated.push(1);
        }
    }
    (values, defined, repeated)
}

/// A Parquet file in memory.
pub(super) struct Columns {
    reader: SerializedFileReader<Bytes>,
}

impl Columns {
    pub(super) fn open(bytes: Vec<u8>) -> Result<Columns> {
        Ok(Columns { reader: SerializedFileReader::new(Bytes::from(bytes)).map_err(failed)? })
    }

    pub(super) fn n_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    /// A value of the file's key-value metadata.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        let entries = self.reader.metadata().file_metadata().key_value_metadata()?;
        entries.iter().find(|entry| entry.key == key)?.value.as_deref()
    }

    pub(super) fn group(&self, index: usize) -> Result<Rows<'_>> {
        let group = self.reader.get_row_group(index).map_err(failed)?;
        let n_rows = usize::try_from(group.metadata().num_rows()).unwrap_or(usize::MAX);
        if n_rows > GROUP_ROWS_MAX {
            let (value, limit) = (n_rows as u64, GROUP_ROWS_MAX as u64);
            return Err(FormatError::TooLarge { what: "rows of a row group".to_owned(), value, limit });
        }
        Ok(Rows { group, n_rows })
    }
}

/// A row group being read.
pub(super) struct Rows<'a> {
    group: Box<dyn RowGroupReader + 'a>,
    n_rows: usize,
}

/// What a column has to look like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Required,
    Optional,
    List,
}

impl Rows<'_> {
    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Values, definition levels and repetition levels of a whole column.
    fn read<T: DataType>(&self, name: &str, kind: Kind) -> Result<Levelled<T::T>> {
        let schema = self.group.metadata().schema_descr();
        let is_named = |parts: &[String]| match kind {
            Kind::List => parts.len() == 3 && parts[0] == name,
            Kind::Required | Kind::Optional => parts.len() == 1 && parts[0] == name,
        };
        let index = (0..schema.num_columns())
            .find(|&i| is_named(schema.column(i).path().parts()))
            .ok_or_else(|| wrong(format!("no column `{name}`")))?;
        let column = schema.column(index);
        let chunk = self.group.metadata().column(index);
        if chunk.dictionary_page_offset().unwrap_or(0) < 0
            || chunk.data_page_offset() < 0
            || chunk.compressed_size() < 0
        {
            return Err(wrong(format!("column `{name}` lies outside the file")));
        }
        let expected: (Physical, i16, i16) = match kind {
            Kind::Required => (T::get_physical_type(), 0, 0),
            Kind::Optional => (T::get_physical_type(), 1, 0),
            Kind::List => (T::get_physical_type(), 1, 1),
        };
        if (column.physical_type(), column.max_def_level(), column.max_rep_level()) != expected {
            return Err(wrong(format!("column `{name}` has another type than expected")));
        }
        let reader = self.group.get_column_reader(index).map_err(failed)?;
        let mut reader = get_typed_column_reader::<T>(reader);
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_read = 0;
        while n_read < self.n_rows {
            let (records, _, levels) = reader
                .read_records(self.n_rows - n_read, Some(&mut defined), Some(&mut repeated), &mut values)
                .map_err(failed)?;
            if records == 0 && levels == 0 {
                return Err(wrong(format!("column `{name}` has {n_read} rows, not {}", self.n_rows)));
            }
            n_read += records;
        }
        Ok((values, defined, repeated))
    }

    pub(super) fn strings(&self, name: &str) -> Result<Vec<String>> {
        let (values, _, _) = self.read::<ByteArrayType>(name, Kind::Required)?;
        values.iter().map(|value| text(name, value)).collect()
    }

    pub(super) fn optional_strings(&self, name: &str) -> Result<Vec<Option<String>>> {
        let (values, defined, _) = self.read::<ByteArrayType>(name, Kind::Optional)?;
        let mut values = values.iter();
        defined
            .iter()
            .map(|&level| {
                let value = if level > 0 { values.next() } else { None };
                value.map(|value| text(name, value)).transpose()
            })
            .collect()
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Vec<u32>> {
        let (values, _, _) = self.read::<Int32Type>(name, Kind::Required)?;
        Ok(values.into_iter().map(i32::cast_unsigned).collect())
    }

    pub(super) fn doubles(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.read::<DoubleType>(name, Kind::Required)?.0)
    }

    pub(super) fn number_lists(&self, name: &str) -> Result<Lists<u32>> {
        let lists = Lists::new(name, self.read::<Int32Type>(name, Kind::List)?, self.n_rows)?;
        Ok(lists.map(i32::cast_unsigned))
    }

    pub(super) fn float_lists(&self, name: &str) -> Result<Lists<f32>> {
        Lists::new(name, self.read::<FloatType>(name, Kind::List)?, self.n_rows)
    }
}

fn text(name: &str, value: &ByteArray) -> Result<String> {
    let text =
        std::str::from_utf8(value.data()).map_err(|_| wrong(format!("column `{name}` is not UTF-8")))?;
    Ok(text.to_owned())
}

/// One list per row.
pub(super) struct Lists<T> {
    values: Vec<T>,
    /// List i is `values[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
}

impl<T> Lists<T> {
    fn new(name: &str, (values, defined, repeated): Levelled<T>, n_rows: usize) -> Result<Lists<T>> {
        let mut starts = Vec::with_capacity(n_rows + 1);
        let mut n_values = 0;
        for (&defined, &repeated) in defined.iter().zip(&repeated) {
            if repeated == 0 {
                starts.push(n_values);
            }
            n_values += usize::from(defined > 0);
        }
        starts.push(n_values);
        if starts.len() != n_rows + 1 || n_values != values.len() || repeated.first().is_some_and(|&r| r != 0)
        {
            return Err(wrong(format!("column `{name}` has other lists than rows")));
        }
        Ok(Lists { values, starts })
    }

    pub(super) fn list(&self, row: usize) -> &[T] {
        &self.values[self.starts[row]..self.starts[row + 1]]
    }

    pub(super) fn map<U>(self, f: impl Fn(T) -> U) -> Lists<U> {
        Lists { values: self.values.into_iter().map(f).collect(), starts: self.starts }
    }
}
