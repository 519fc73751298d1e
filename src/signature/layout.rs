//! Struct layouts per version: named numbers with a source each, inherited from version to version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer};
use toml::Spanned;

use super::error::{Location, SignatureError, Text};

/// The layout of one version of a program's structures, its parents' numbers included.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// What it is a layout of: `cpython`, `pytorch`.
    pub family: String,
    /// The version, `3.11`.
    pub version: String,
    /// The version that it takes over what it does not say itself.
    pub inherits: Option<String>,
    /// Every number under `type.field`.
    pub fields: BTreeMap<String, FieldEntry>,
    /// What the parent has and this version no longer does.
    gone: BTreeSet<String>,
    /// What all inherited numbers of some types grow by.
    shift: Option<Shift>,
    tables: BTreeMap<String, toml::Value>,
}

/// Types that begin with something that grew: what follows lies later.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shift {
    bytes: i64,
    types: Vec<String>,
    source: String,
}

impl Shift {
    /// A number that is inherited, as it is in this layout.
    fn apply(&self, name: &str, entry: &FieldEntry) -> Option<FieldEntry> {
        let (of, _) = name.split_once('.')?;
        self.types.iter().any(|shifted| shifted == of).then(|| FieldEntry {
            value: entry.value.wrapping_add(self.bytes),
            source: format!("{}; moved by {}: {}", entry.source, self.bytes, self.source),
        })
    }
}

/// A number of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldEntry {
    /// An offset, a size, or another number.
    pub value: i64,
    /// Where it was read: header file and version.
    pub source: String,
}

impl Layout {
    /// The number named `type.field`.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.fields.get(name).map(|entry| entry.value)
    }

    /// The table of that name, as it stands in the file under `[layout.table]`.
    pub fn table(&self, name: &str) -> Option<&toml::Value> {
        self.tables.get(name)
    }
}

/// A layout whose parent is not looked up yet.
#[derive(Debug)]
pub(super) struct Unresolved {
    declared: Layout,
    /// Where the version stands, and the parent's.
    pub(super) location: Location,
    inherits_at: Location,
}

impl Unresolved {
    pub(super) fn key(&self) -> (String, String) {
        (self.declared.family.clone(), self.declared.version.clone())
    }
}

/// Completes every layout from its parents; sorted by family and version as text.
pub(super) fn resolve(layouts: Vec<Unresolved>) -> Result<Vec<Layout>, SignatureError> {
    let by_key: HashMap<_, _> = layouts.iter().map(|layout| (layout.key(), layout)).collect();
    let mut resolved = Vec::new();
    for layout in &layouts {
        let mut complete = layout.declared.clone();
        let mut child = layout;
        let mut shifts: Vec<&Shift> = Vec::new();
        // A chain longer than the number of layouts has come round.
        for _ in 0..=layouts.len() {
            let Some(version) = &child.declared.inherits else { break };
            let parent = by_key.get(&(layout.declared.family.clone(), version.clone()));
            let Some(parent) = parent else {
                let reason = format!("there is no layout for {} {version}", layout.declared.family);
                return Err(child.inherits_at.error(reason));
            };
            shifts.extend(&child.declared.shift);
            for (name, entry) in parent.declared.fields.iter().filter(|(name, _)| !complete.gone.contains(*name)) {
                complete.fields.entry(name.clone()).or_insert_with(|| {
                    let moved = |entry: FieldEntry, shift: &&Shift| shift.apply(name, &entry).unwrap_or(entry);
                    shifts.iter().fold(entry.clone(), moved)
                });
            }
            complete
                .gone
                .extend(parent.declared.gone.iter().filter(|name| !complete.fields.contains_key(*name)).cloned());
            for (name, table) in &parent.declared.tables {
                complete.tables.entry(name.clone()).or_insert_with(|| table.clone());
            }
            child = parent;
        }
        if child.declared.inherits.is_some() {
            let reason = format!("{} {} inherits from itself", layout.declared.family, layout.declared.version);
            return Err(layout.inherits_at.error(reason));
        }
        resolved.push(complete);
    }
    resolved.sort_by(|a, b| (&a.family, &a.version).cmp(&(&b.family, &b.version)));
    Ok(resolved)
}

/// `[layout]` as it stands in the file: fixed keys beside one table per type.
#[derive(Default)]
pub(super) struct RawLayout {
    family: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
    inherits: Option<Spanned<String>>,
    source: Option<String>,
    shift: Option<Shift>,
    table: BTreeMap<String, toml::Value>,
    types: Vec<(String, RawType)>,
}

/// One `[layout.type]`.
#[derive(Default)]
struct RawType {
    source: Option<String>,
    fields: Vec<(Spanned<String>, RawEntry)>,
}

/// `name = 8`, `name = { offset = 8, source = "…" }` or `name = "gone"`.
enum RawEntry {
    Gone,
    Plain(i64),
    Table(RawEntryTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntryTable {
    #[serde(alias = "size", alias = "value")]
    offset: i64,
    source: Option<String>,
}

impl RawLayout {
    pub(super) fn check(self, text: Text<'_>) -> Result<Unresolved, SignatureError> {
        let head = text.text.find("[layout").unwrap_or_default();
        let needed = |key: Option<Spanned<String>>, name: &str| match key {
            Some(key) if !key.get_ref().is_empty() => Ok(key),
            Some(key) => Err(text.error(key.span(), "must not be empty")),
            None => Err(text.error(head..head, format!("missing key `{name}`"))),
        };
        let family = needed(self.family, "family")?;
        let version = needed(self.version, "version")?;
        let mut fields = BTreeMap::new();
        let mut gone = BTreeSet::new();
        for (type_name, raw) in self.types {
            let default = raw.source.or_else(|| self.source.clone());
            for (name, entry) in raw.fields {
                let (value, source) = match entry {
                    RawEntry::Gone => {
                        gone.insert(format!("{type_name}.{}", name.get_ref()));
                        continue;
                    }
                    RawEntry::Plain(value) => (value, None),
                    RawEntry::Table(table) => (table.offset, table.source),
                };
                let Some(source) = source.or_else(|| default.clone()) else {
                    let reason = "no `source`: give one here, in the table of the type, or in [layout]";
                    return Err(text.error(name.span(), reason));
                };
                fields.insert(format!("{type_name}.{}", name.get_ref()), FieldEntry { value, source });
            }
        }
        let inherits_at = text.at(self.inherits.as_ref().map_or(version.span(), Spanned::span));
        Ok(Unresolved {
            location: text.at(version.span()),
            inherits_at,
            declared: Layout {
                family: family.into_inner(),
                version: version.into_inner(),
                inherits: self.inherits.map(Spanned::into_inner),
                fields,
                gone,
                shift: self.shift,
                tables: self.table,
            },
        })
    }
}

impl<'de> Deserialize<'de> for RawLayout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LayoutVisitor;
        impl<'de> Visitor<'de> for LayoutVisitor {
            type Value = RawLayout;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with family, version, and a table per type")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawLayout, A::Error> {
                let mut layout = RawLayout::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "family" => layout.family = Some(map.next_value()?),
                        "version" => layout.version = Some(map.next_value()?),
                        "inherits" => layout.inherits = Some(map.next_value()?),
                        "source" => layout.source = Some(map.next_value()?),
                        "shift" => layout.shift = Some(map.next_value()?),
                        "table" => layout.table = map.next_value()?,
                        _ => layout.types.push((key, map.next_value()?)),
                    }
                }
                Ok(layout)
            }
        }
        deserializer.deserialize_map(LayoutVisitor)
    }
}

impl<'de> Deserialize<'de> for RawType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TypeVisitor;
        impl<'de> Visitor<'de> for TypeVisitor {
            type Value = RawType;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of the type's fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawType, A::Error> {
                let mut raw = RawType::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    match key.get_ref().as_str() {
                        "source" => raw.source = Some(map.next_value()?),
                        _ => raw.fields.push((key, map.next_value()?)),
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(TypeVisitor)
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = RawEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, { offset = …, source = \"…\" } or \"gone\"")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<RawEntry, E> {
                if value == "gone" { Ok(RawEntry::Gone) } else { Err(E::invalid_value(Unexpected::Str(value), &self)) }
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<RawEntry, E> {
                Ok(RawEntry::Plain(value))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEntry, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(map)).map(RawEntry::Table)
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}
