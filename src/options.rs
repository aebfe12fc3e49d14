//! Every option that crosses the ABI as JSON, described once: name, type, default, range, unit and one text.
//!
//! `options!` makes of one table a struct, its defaults and its description. The text of the header, the
//! signatures and docstrings of Python and the help of the command line come from the descriptions
//! ([`describe`]), and [`check`] refuses by them. Knows nothing of what the options do.

use serde_json::{Value, json};

use crate::distill::Config;
use crate::error::{Error, Result};
use crate::field::Rivals;
use crate::solver::Spec;

/// What values an option takes.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// "integer", "number", "boolean", "string", "path", "object", "grid" (an object that says how noise
    /// levels are spread), "grids" (an array of arrays of noise levels) or "schedules" (an array of objects,
    /// each as in its file).
    pub json: &'static str,
    /// The smallest and the largest number; infinite where there is none.
    pub bounds: (f64, f64),
    /// The range in words, where it is more than the bounds; else empty.
    pub range: &'static str,
    /// The only values of a string; empty where it may be any.
    pub values: &'static [&'static str],
    /// What is counted or measured; empty where nothing is.
    pub unit: &'static str,
}

impl Kind {
    const fn new(json: &'static str) -> Self {
        Self { json, bounds: (f64::NEG_INFINITY, f64::INFINITY), range: "", values: &[], unit: "" }
    }

    /// With a unit.
    pub const fn of(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// With a range in words.
    pub const fn range(self, range: &'static str) -> Self {
        Self { range, ..self }
    }
}

/// A whole number, both ends included.
pub const fn integer(low: u32, high: u32) -> Kind {
    Kind { bounds: (low as f64, high as f64), ..Kind::new("integer") }
}

/// A whole number of 0 and more.
pub const fn count() -> Kind {
    Kind::new("integer").range("0 and more")
}

/// A number, both ends included.
pub const fn between(low: f64, high: f64) -> Kind {
    Kind { bounds: (low, high), ..Kind::new("number") }
}

/// A number whose range is checked by those who know it.
pub const fn number(range: &'static str) -> Kind {
    Kind::new("number").range(range)
}

/// True or false.
pub const fn flag() -> Kind {
    Kind::new("boolean")
}

/// A text.
pub const fn text() -> Kind {
    Kind::new("string")
}

/// One of a few words.
pub const fn one_of(values: &'static [&'static str]) -> Kind {
    Kind { values, ..Kind::new("string") }
}

/// Any other kind, by its name in [`Kind::json`].
pub const fn other(json: &'static str, range: &'static str) -> Kind {
    Kind::new(json).range(range)
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// Its key in the JSON object.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What happens without it, where that is no fixed value; else empty.
    pub otherwise: &'static str,
    /// One text for the manual.
    pub about: &'static str,
}

/// A struct of options, its defaults and, as `OPTIONS`, their descriptions. A line is
/// `name: type = default, kind;`, with `else "words"` before the semicolon where the default depends on others.
macro_rules! options {
    (
        $(#[doc = $doc:literal])+
        struct $name:ident {
            $( $(#[doc = $about:literal])+ $(#[serde($($serde:tt)+)])? $field:ident: $type:ty = $default:expr,
                $kind:expr $(, else $otherwise:literal)?; )+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $( $(#[doc = $about])+ $(#[serde($($serde)+)])? pub $field: $type, )+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $name {
            /// The description of each option.
            pub const OPTIONS: &'static [$crate::options::Item] = &[
                $( $crate::options::Item {
                    name: stringify!($field),
                    kind: $kind,
                    otherwise: concat!("" $(, $otherwise)?),
                    about: concat!($($about),+),
                }, )+
            ];
        }
    };
}
pub(crate) use options;

impl Item {
    /// The allowed values in words, such as "1 to 50"; empty where the type says it all.
    pub fn range(&self) -> String {
        let (low, high) = self.kind.bounds;
        match self.kind {
            Kind { values, .. } if !values.is_empty() => quoted(values).join(" or "),
            Kind { range: "", .. } if low.is_finite() => format!("{} to {}", short(low), short(high)),
            _ => self.kind.range.into(),
        }
    }

    /// The default in words; `default` is its value.
    fn default(&self, default: &Value) -> String {
        match default {
            _ if !self.otherwise.is_empty() => self.otherwise.into(),
            Value::Null => "none".into(),
            Value::Number(n) => n.as_f64().map_or(String::new(), short),
            Value::Array(list) if list.is_empty() => "none".into(),
            Value::Object(map) if map.is_empty() => "nothing".into(),
            other => other.to_string(),
        }
    }

    /// As `lmsd_options` gives it.
    fn json(&self, defaults: &Value) -> Value {
        let default = if self.otherwise.is_empty() { defaults[self.name].clone() } else { Value::Null };
        let mut item = json!({
            "name": self.name,
            "type": self.kind.json,
            "default": default,
            "default_text": self.default(&default),
            "range": self.range(),
            "unit": self.kind.unit,
            "about": self.about.trim(),
        });
        if !self.kind.values.is_empty() {
            item["values"] = json!(self.kind.values);
        }
        let (low, high) = self.kind.bounds;
        if low.is_finite() {
            let whole = self.kind.json == "integer";
            let number = |value: f64| if whole { json!(value as u64) } else { json!(value) };
            item["min"] = number(low);
            item["max"] = number(high);
        }
        item
    }
}

/// All of `items`, with the values of `defaults`.
pub fn describe(items: &[Item], defaults: &impl serde::Serialize) -> Value {
    let defaults = serde_json::to_value(defaults).unwrap_or_default();
    items.iter().map(|item| item.json(&defaults)).collect()
}

/// Refuses the first number of `values` that is out of its bounds. Options that are not given, of which a
/// struct has None, are fine.
pub fn check(items: &[Item], values: &impl serde::Serialize) -> Result<()> {
    let values = serde_json::to_value(values).unwrap_or_default();
    for item in items {
        let (low, high) = item.kind.bounds;
        if let Some(value) = values[item.name].as_f64()
            && !(low..=high).contains(&value)
        {
            let (name, value) = (item.name, short(value));
            return Err(Error::argument(format!("{name} is {value}; it must be {}", item.range())));
        }
    }
    Ok(())
}

/// What `lmsd_options` gives.
pub fn all() -> Value {
    let (config, spec, rivals) = (Config::default(), Spec::default(), Rivals::default());
    json!({
        "solve": describe(Spec::OPTIONS, &spec),
        "distill": describe(Config::OPTIONS, &config),
        "compare": describe(&Config::of_comparison(), &config),
        "rivals": describe(Rivals::OPTIONS, &rivals),
    })
}

/// The manual's lines of one list of [`describe`], each beginning with "- ".
pub fn manual(list: &Value) -> Vec<String> {
    let line = |item: &Value| {
        let text = |key: &str| item[key].as_str().unwrap_or_default();
        let facts = [text("type"), text("unit"), text("range")];
        let facts: Vec<&str> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
        let facts = facts.join("; ");
        format!("- \"{}\" ({facts}; default: {}): {}", text("name"), text("default_text"), text("about"))
    };
    list.as_array().into_iter().flatten().map(line).collect()
}

fn quoted(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| format!("\"{value}\"")).collect()
}

/// A number as people write it.
fn short(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e7).contains(&value.abs()) { format!("{value:e}") } else { value.to_string() }
}
