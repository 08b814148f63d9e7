//! The verifier `json_schema`: a reply is JSON that a schema allows.
//!
//! The reply is JSON as a whole, or holds one fenced block that is. The schema is the recipe's or, where it has none, the row's
//! answer. Of JSON Schema 2020-12 the keywords in [`KEYWORDS`] are known, and `$ref` within the schema itself; a schema with
//! any other keyword is refused, so that nothing is left unchecked without a word.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Number, Value};
use stillroom_core::{Message, Prompt};

use super::pattern::compiled;
use super::{Verdict, Verifier};

/// Most levels of a schema and of what it checks.
const DEPTH_MAX: usize = 64;
/// Most keywords that are looked at for one reply; recursion and alternatives multiply.
const STEPS_MAX: u32 = 1_000_000;
/// Keywords that say something about a value; the order is that in which a reason names them.
pub const KEYWORDS: [&str; 38] = [
    "$ref",
    "type",
    "enum",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "required",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "$defs",
    "definitions",
    "dependentSchemas",
];
/// Keywords that say nothing about a value.
const ANNOTATIONS: [&str; 11] = [
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
];

/// A schema that was checked to have known keywords only.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Value,
    patterns: HashMap<String, Regex>,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// Says which keyword is unknown, or what of one has no sense.
    pub fn parse(text: &str) -> Result<Schema, String> {
        let root: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let mut schema = Schema { root: Value::Null, patterns: HashMap::new() };
        schema.admit(&root, &root, 0)?;
        schema.root = root;
        Ok(schema)
    }

    /// Checks a schema's keywords and those of the schemas within it.
    fn admit(&mut self, schema: &Value, root: &Value, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("nested more than {DEPTH_MAX} levels deep"));
        }
        let keywords = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(keywords) => keywords,
            _ => return Err("a schema is an object or a boolean".into()),
        };
        for (name, value) in keywords {
            self.admit_keyword(name, value, root, depth)?;
        }
        Ok(())
    }

    fn admit_keyword(&mut self, name: &str, value: &Value, root: &Value, depth: usize) -> Result<(), String> {
        let wrong = |wanted: &str| Err(format!("`{name}` is not {wanted}"));
        match name {
            "items"
            | "contains"
            | "additionalProperties"
            | "propertyNames"
            | "not"
            | "if"
            | "then"
            | "else" => self.admit(value, root, depth + 1),
            "prefixItems" | "allOf" | "anyOf" | "oneOf" => match value {
                Value::Array(schemas) if !schemas.is_empty() => {
                    schemas.iter().try_for_each(|schema| self.admit(schema, root, depth + 1))
                }
                _ => wrong("a list of schemas"),
            },
            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => {
                let Value::Object(schemas) = value else { return wrong("an object of schemas") };
                if name == "patternProperties" {
                    schemas.keys().try_for_each(|pattern| self.admit_pattern(pattern))?;
                }
                schemas.values().try_for_each(|schema| self.admit(schema, root, depth + 1))
            }
            "pattern" => match value.as_str() {
                Some(pattern) => self.admit_pattern(pattern),
                None => wrong("text"),
            },
            "$ref" => match value.as_str().and_then(|to| pointed(root, to)) {
                Some(_) => Ok(()),
                None => wrong("a place in this schema, such as `#/$defs/name`"),
            },
            "type" => match names(value) {
                Some(types) if types.iter().all(|name| TYPES.contains(name)) => Ok(()),
                _ => wrong("a type or a list of types"),
            },
            "enum" if !value.is_array() => wrong("a list"),
            "required" if names(value).is_none() || !value.is_array() => wrong("a list of names"),
            "dependentRequired" => match value.as_object() {
                Some(lists) if lists.values().all(|list| list.is_array() && names(list).is_some()) => Ok(()),
                _ => wrong("an object of lists of names"),
            },
            "uniqueItems" if !value.is_boolean() => wrong("true or false"),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" if !value.is_number() => {
                wrong("a number")
            }
            "multipleOf" if !value.as_f64().is_some_and(|n| n > 0.0) => wrong("a number above 0"),
            _ if is_count(name) && value.as_u64().is_none() => wrong("a whole number from 0 on"),
            _ if KEYWORDS.contains(&name) || ANNOTATIONS.contains(&name) => Ok(()),
            _ => Err(format!("the keyword `{}` is not known here", name.escape_debug())),
        }
    }

    fn admit_pattern(&mut self, pattern: &str) -> Result<(), String> {
        let regex = compiled(pattern)
            .map_err(|error| format!("the pattern `{}`: {error}", pattern.escape_debug()))?;
        self.patterns.insert(pattern.to_owned(), regex);
        Ok(())
    }

    /// Whether a value is allowed.
    ///
    /// # Errors
    /// Says where it is not, and which keyword forbids it.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        Check { schema: self, steps: 0 }.value(&self.root, value, "", 0)
    }
}

const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];

fn is_count(name: &str) -> bool {
    ["Length", "Items", "Contains", "Properties"]
        .iter()
        .any(|of| name.strip_suffix(of).is_some_and(|bound| bound == "min" || bound == "max"))
}

/// One name, or a list of names.
fn names(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// The schema that `#`, or `#/…` as a JSON pointer, stands for.
fn pointed<'a>(root: &'a Value, to: &str) -> Option<&'a Value> {
    root.pointer(to.strip_prefix('#')?)
}

/// One value on its way through a schema.
struct Check<'a> {
    schema: &'a Schema,
    steps: u32,
}

type Checked = Result<(), String>;

impl<'a> Check<'a> {
    fn value(&mut self, schema: &'a Value, value: &Value, at: &str, depth: usize) -> Checked {
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(keywords) => keywords,
            _ => return Err(format!("{} is not allowed", place(at))),
        };
        if depth > DEPTH_MAX {
            return Err(format!("{} is nested too deeply", place(at)));
        }
        for keyword in KEYWORDS {
            let Some(wanted) = keywords.get(keyword) else { continue };
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err("takes too long to check".into());
            }
            self.keyword(keyword, wanted, keywords, value, at, depth)?;
        }
        Ok(())
    }

    /// Whether a value is allowed where that is only a part of the question.
    fn holds(&mut self, schema: &'a Value, value: &Value, at: &str, depth: usize) -> Result<bool, String> {
        let held = self.value(schema, value, at, depth + 1).is_ok();
        if self.steps > STEPS_MAX { Err("takes too long to check".into()) } else { Ok(held) }
    }

    fn keyword(
        &mut self,
        name: &str,
        wanted: &'a Value,
        beside: &'a Map<String, Value>,
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Checked {
        let failed = || Err(format!("{} breaks `{name}`", place(at)));
        let ok = |holds: bool| if holds { Ok(()) } else { failed() };
        match name {
            "$ref" => {
                let to = wanted
                    .as_str()
                    .and_then(|to| pointed(&self.schema.root, to))
                    .unwrap_or(&Value::Bool(false));
                self.value(to, value, at, depth + 1)
            }
            "type" => ok(names(wanted).unwrap_or_default().iter().any(|name| is_type(value, name))),
            "enum" => ok(wanted.as_array().is_some_and(|all| all.iter().any(|one| equal(one, value)))),
            "const" => ok(equal(wanted, value)),
            "allOf" => list(wanted).iter().try_for_each(|schema| self.value(schema, value, at, depth + 1)),
            "anyOf" => {
                for schema in list(wanted) {
                    if self.holds(schema, value, at, depth)? {
                        return Ok(());
                    }
                }
                failed()
            }
            "oneOf" => {
                let mut n = 0;
                for schema in list(wanted) {
                    n += u32::from(self.holds(schema, value, at, depth)?);
                }
                ok(n == 1)
            }
            "not" => ok(!self.holds(wanted, value, at, depth)?),
            "if" => {
                let branch = if self.holds(wanted, value, at, depth)? { "then" } else { "else" };
                beside.get(branch).map_or(Ok(()), |schema| self.value(schema, value, at, depth + 1))
            }
            _ => match value {
                Value::Number(number) => ok(number_holds(name, wanted, number)),
                Value::String(text) => ok(self.text_holds(name, wanted, text)),
                Value::Array(items) => self.items(name, wanted, beside, items, at, depth),
                Value::Object(fields) => self.fields(name, wanted, beside, fields, at, depth),
                _ => Ok(()),
            },
        }
    }

    fn text_holds(&self, name: &str, wanted: &Value, text: &str) -> bool {
        let length = || text.chars().count() as u64;
        match name {
            "minLength" => wanted.as_u64().is_none_or(|least| length() >= least),
            "maxLength" => wanted.as_u64().is_none_or(|most| length() <= most),
            "pattern" => {
                wanted.as_str().and_then(|p| self.schema.patterns.get(p)).is_none_or(|p| p.is_match(text))
            }
            _ => true,
        }
    }

    fn items(
        &mut self,
        name: &str,
        wanted: &'a Value,
        beside: &'a Map<String, Value>,
        items: &[Value],
        at: &str,
        depth: usize,
    ) -> Checked {
        let n = items.len() as u64;
        let holds = match name {
            "prefixItems" => {
                for (i, (schema, item)) in list(wanted).iter().zip(items).enumerate() {
                    self.value(schema, item, &format!("{at}/{i}"), depth + 1)?;
                }
                true
            }
            "items" => {
                let before = beside.get("prefixItems").map_or(0, |schemas| list(schemas).len());
                for (i, item) in items.iter().enumerate().skip(before) {
                    self.value(wanted, item, &format!("{at}/{i}"), depth + 1)?;
                }
                true
            }
            "minItems" => wanted.as_u64().is_none_or(|least| n >= least),
            "maxItems" => wanted.as_u64().is_none_or(|most| n <= most),
            "uniqueItems" if wanted == &Value::Bool(true) => {
                for (i, item) in items.iter().enumerate() {
                    self.steps = self.steps.saturating_add(i as u32);
                    if self.steps > STEPS_MAX {
                        return Err("takes too long to check".into());
                    }
                    if items[..i].iter().any(|other| equal(item, other)) {
                        return Err(format!("{} breaks `uniqueItems`", place(at)));
                    }
                }
                true
            }
            "contains" => {
                let mut found = 0;
                for item in items {
                    found += u64::from(self.holds(wanted, item, at, depth)?);
                }
                let bound = |name: &str| beside.get(name).and_then(Value::as_u64);
                found >= bound("minContains").unwrap_or(1)
                    && bound("maxContains").is_none_or(|most| found <= most)
            }
            _ => true,
        };
        if holds { Ok(()) } else { Err(format!("{} breaks `{name}`", place(at))) }
    }

    fn fields(
        &mut self,
        name: &str,
        wanted: &'a Value,
        beside: &'a Map<String, Value>,
        fields: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Checked {
        let missing = |names: &'a Value| {
            names.as_array()?.iter().filter_map(Value::as_str).find(|n| !fields.contains_key(*n))
        };
        let n = fields.len() as u64;
        let inner = |field: &str| format!("{at}/{}", field.escape_debug());
        match name {
            "required" => match missing(wanted) {
                Some(field) => Err(format!("{} has no `{}`", place(at), field.escape_debug())),
                None => Ok(()),
            },
            "properties" => object(wanted).iter().try_for_each(|(field, schema)| match fields.get(field) {
                Some(value) => self.value(schema, value, &inner(field), depth + 1),
                None => Ok(()),
            }),
            "patternProperties" | "additionalProperties" => {
                for (field, value) in fields {
                    for schema in self.others(name, wanted, beside, field) {
                        self.value(schema, value, &inner(field), depth + 1)?;
                    }
                }
                Ok(())
            }
            "propertyNames" => fields.keys().try_for_each(|field| {
                self.value(wanted, &Value::String(field.clone()), &inner(field), depth + 1)
            }),
            "minProperties" if wanted.as_u64().is_some_and(|least| n < least) => {
                Err(format!("{} breaks `{name}`", place(at)))
            }
            "maxProperties" if wanted.as_u64().is_some_and(|most| n > most) => {
                Err(format!("{} breaks `{name}`", place(at)))
            }
            "dependentRequired" => {
                let there = object(wanted).iter().filter(|(field, _)| fields.contains_key(*field));
                match there.filter_map(|(_, names)| missing(names)).next() {
                    Some(field) => Err(format!("{} has no `{}`", place(at), field.escape_debug())),
                    None => Ok(()),
                }
            }
            "dependentSchemas" => {
                object(wanted).iter().filter(|(field, _)| fields.contains_key(*field)).try_for_each(
                    |(_, schema)| self.value(schema, &Value::Object(fields.clone()), at, depth + 1),
                )
            }
            _ => Ok(()),
        }
    }

    /// The schemas that a field has to obey by its pattern, or for having none.
    fn others(
        &self,
        name: &str,
        wanted: &'a Value,
        beside: &'a Map<String, Value>,
        field: &str,
    ) -> Vec<&'a Value> {
        let by_pattern = |patterns: &'a Value| {
            let known = object(patterns).iter();
            known
                .filter(|(p, _)| self.schema.patterns.get(*p).is_some_and(|p| p.is_match(field)))
                .map(|(_, schema)| schema)
        };
        if name == "patternProperties" {
            return by_pattern(wanted).collect();
        }
        let named = beside.get("properties").is_some_and(|fields| object(fields).contains_key(field));
        let patterned =
            beside.get("patternProperties").is_some_and(|patterns| by_pattern(patterns).next().is_some());
        if named || patterned { Vec::new() } else { vec![wanted] }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn object(value: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&EMPTY)
}

fn place(at: &str) -> String {
    if at.is_empty() { "the reply".into() } else { format!("`{at}`") }
}

fn is_type(value: &Value, name: &str) -> bool {
    match (value, name) {
        (Value::Null, "null") | (Value::Bool(_), "boolean") | (Value::Object(_), "object") => true,
        (Value::Array(_), "array") | (Value::String(_), "string") | (Value::Number(_), "number") => true,
        (Value::Number(number), "integer") => {
            !number.is_f64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        _ => false,
    }
}

fn number_holds(name: &str, wanted: &Value, number: &Number) -> bool {
    let (Some(value), Some(bound)) = (number.as_f64(), wanted.as_f64()) else { return true };
    match name {
        "minimum" => value >= bound,
        "maximum" => value <= bound,
        "exclusiveMinimum" => value > bound,
        "exclusiveMaximum" => value < bound,
        "multipleOf" => match (number.as_i64(), wanted.as_i64()) {
            (Some(value), Some(of)) if of != 0 => value % of == 0,
            _ => {
                let times = value / bound;
                times.is_finite() && (times - times.round()).abs() <= 1e-9 * times.abs().max(1.0)
            }
        },
        _ => true,
    }
}

/// Equal as JSON Schema has it: 1 and 1.0 are one number, and the order of an object's fields does not matter.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

#[derive(Clone, Debug, Default)]
pub struct JsonSchema {
    schema: Option<Schema>,
}

impl JsonSchema {
    /// # Errors
    /// Says what is wrong with the schema.
    pub fn new(schema: Option<&str>) -> Result<JsonSchema, String> {
        Ok(JsonSchema { schema: schema.map(Schema::parse).transpose()? })
    }

    fn judge(&self, prompt: &Prompt, reply: &Message) -> Result<(), String> {
        let value = json_of(&reply.content)?;
        match (&self.schema, prompt.answer.as_deref()) {
            (Some(schema), _) => schema.check(&value),
            (None, Some(answer)) => {
                Schema::parse(answer).map_err(|error| format!("the prompt's schema: {error}"))?.check(&value)
            }
            (None, None) => Err("the prompt has no schema as its answer".into()),
        }
    }
}

impl Verifier for JsonSchema {
    fn name(&self) -> &'static str {
        "json_schema"
    }

    fn verify(&self, prompt: &Prompt, reply: &Message) -> Verdict {
        match self.judge(prompt, reply) {
            Ok(()) => Verdict::right(),
            Err(reason) => Verdict::wrong(reason),
        }
    }

    /// The JSON in one line, with the fields of objects in the order of their names.
    fn answer(&self, reply: &Message) -> Option<String> {
        let mut value = json_of(&reply.content).ok()?;
        value.sort_all_objects();
        Some(value.to_string())
    }
}

/// The reply as JSON, or its only fenced block.
fn json_of(text: &str) -> Result<Value, String> {
    let whole = serde_json::from_str(text.trim());
    let error = match whole {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let mut fences = text.split("```").skip(1).step_by(2);
    match (fences.next(), fences.next()) {
        (Some(block), None) if text.matches("```").count() == 2 => {
            let body = block.strip_prefix("json").or_else(|| block.strip_prefix("JSON")).unwrap_or(block);
            serde_json::from_str(body.trim()).map_err(|error| format!("the block is not JSON: {error}"))
        }
        _ => Err(format!("not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use stillroom_core::Role;

    use super::*;

    #[test]
    fn unknown_keywords_and_senseless_ones_are_refused() {
        for (schema, wrong) in [
            (r#"{"format": "date"}"#, "the keyword `format` is not known here"),
            (r#"{"items": {"formula": 1}}"#, "the keyword `formula` is not known here"),
            (r#"{"$ref": "https://example.com/s.json"}"#, "`$ref` is not a place in this schema"),
            (r##"{"$ref": "#/$defs/none"}"##, "`$ref` is not a place"),
            (r#"{"type": "text"}"#, "`type` is not a type"),
            (r#"{"minLength": -1}"#, "`minLength` is not a whole number"),
            (r#"{"multipleOf": 0}"#, "`multipleOf` is not a number above 0"),
            (r#"{"pattern": "("}"#, "the pattern `(`: unclosed group"),
            (r#"{"items": [{}]}"#, "a schema is an object"),
            ("[]", "a schema is an object"),
            ("{", "not JSON"),
        ] {
            let error = Schema::parse(schema).expect_err(schema);
            assert!(error.starts_with(wrong), "{schema}: {error}");
        }
    }

    #[test]
    fn a_schema_that_goes_round_comes_to_an_end() {
        let schema = Schema::parse(r##"{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}"##).expect("known keywords");
        assert!(schema.check(&Value::Null).is_err());
        let list = Schema::parse(r##"{"type": "array", "items": {"$ref": "#"}}"##).expect("known keywords");
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let parsed = |n: usize| serde_json::from_str::<Value>(&nested(n)).expect("JSON");
        assert_eq!(list.check(&parsed(20)), Ok(()));
        assert!(list.check(&parsed(100)).is_err_and(|e| e.ends_with("nested too deeply")));
        let unique = Schema::parse(r#"{"uniqueItems": true}"#).expect("known keywords");
        let many = Value::Array((0..10_000).map(Value::from).collect());
        assert_eq!(unique.check(&many), Err("takes too long to check".into()));
    }

    #[test]
    fn json_is_the_reply_or_its_only_block() {
        let schema = r#"{"type": "object", "required": ["a"]}"#;
        let prompt = |answer: Option<&str>| Prompt {
            id: "1".into(),
            messages: vec![],
            answer: answer.map(str::to_owned),
            target: None,
        };
        let judge = |of: Option<&str>, answer: Option<&str>, reply: &str| {
            JsonSchema::new(of)
                .expect("a schema")
                .verify(&prompt(answer), &Message::new(Role::Assistant, reply))
        };
        for reply in
            ["{\"a\": 1}", " {\"a\": 1}\n", "Here:\n```json\n{\"a\": 1}\n```\nDone.", "```\n{\"a\": 1}\n```"]
        {
            assert!(judge(Some(schema), None, reply).correct, "{reply}");
            assert!(judge(None, Some(schema), reply).correct, "{reply}");
        }
        assert_eq!(judge(Some(schema), None, "{\"b\": 1}").reason, "the reply has no `a`");
        assert!(judge(Some(schema), None, "It is {\"a\": 1}.").reason.starts_with("not JSON: "));
        assert!(!judge(Some(schema), None, "```{\"a\": 1}``` or ```{\"a\": 2}```").correct);
        assert_eq!(judge(None, None, "{}").reason, "the prompt has no schema as its answer");
        let verifier = JsonSchema::new(None).expect("no schema");
        let answer = verifier.answer(&Message::new(Role::Assistant, "{\"b\": 1, \"a\": [2]}"));
        assert_eq!(answer.as_deref(), Some("{\"a\":[2],\"b\":1}"));
    }
}
