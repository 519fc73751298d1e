//! The numbers of a layout, as they stand in a layout file.

use serde::Deserialize;

use crate::signature;

/// A layout file lacks a number that the code needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layout {family} {version} has no {key}: add it under [layout] in its file")]
pub struct MissingField {
    /// Family of the layout.
    pub family: String,
    /// Version of the layout.
    pub version: String,
    /// The number that is missing, `type.field`.
    pub key: &'static str,
}

/// Why the files of a signature set do not give a layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A number is missing.
    #[error(transparent)]
    Missing(#[from] MissingField),
    /// A table is missing or has another form.
    #[error("the layout {version} has no usable table {table}: {reason}")]
    Table {
        /// Version of the layout.
        version: String,
        /// Which table, under `[layout.table]`.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A number of a layout file that every version needs.
pub(crate) fn required(layout: &signature::Layout, key: &'static str) -> Result<i64, MissingField> {
    let missing = || MissingField { family: layout.family.clone(), version: layout.version.clone(), key };
    layout.get(key).ok_or_else(missing)
}

/// A table of a layout file, in the form that the caller asks for.
pub(crate) fn table<T: for<'de> Deserialize<'de>>(
    layout: &signature::Layout,
    name: &'static str,
) -> Result<T, LayoutError> {
    let error = |reason: String| LayoutError::Table { version: layout.version.clone(), table: name, reason };
    let value = layout.table(name).ok_or_else(|| error("it is missing".to_owned()))?;
    value.clone().try_into().map_err(|e: toml::de::Error| error(e.message().to_owned()))
}

/// All numbers of a layout by their names in layout files, in a fixed order; `None` for what the version has not.
pub type Numbers = Vec<(&'static str, Option<i64>)>;

/// The numbers of one version of a program's structures: offsets in bytes, sizes, flags.
pub trait StructLayout: Clone {
    /// The version that the numbers are of.
    fn version(&self) -> &str;

    /// All numbers.
    fn numbers(&self) -> Numbers;

    /// Replaces a number; one that every version needs stays if there is no other.
    fn set(&mut self, name: &str, value: Option<i64>);
}

/// Declares a struct whose fields are numbers of a layout file, and how it is made from one.
///
/// Fields of type `Option` may be missing: their absence says that the version has no such field.
macro_rules! layout_struct {
    (@get $layout:ident, $key:literal, Option<$type:ty>) => {
        $layout.get($key)
    };
    (@set $place:expr, $value:ident, Option<$type:ty>) => {
        $place = $value
    };
    (@set $place:expr, $value:ident, i64) => {
        $place = $value.unwrap_or($place)
    };
    (@get $layout:ident, $key:literal, i64) => {
        $crate::layout::required($layout, $key)?
    };
    ($(#[$doc:meta])* $name:ident { $($field:ident: $key:literal as $kind:ident $(<$inner:ty>)?,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            /// The version that the numbers are of.
            pub version: String,
            $(
                #[doc = concat!("`", $key, "`.")]
                pub $field: $kind $(<$inner>)?,
            )*
        }

        impl $name {
            /// The numbers of a layout file.
            ///
            /// # Errors
            /// One that every version needs is missing.
            pub fn new(layout: &$crate::signature::Layout) -> Result<Self, $crate::layout::MissingField> {
                Ok(Self {
                    version: layout.version.clone(),
                    $($field: layout_struct!(@get layout, $key, $kind $(<$inner>)?),)*
                })
            }
        }

        impl $crate::layout::StructLayout for $name {
            fn version(&self) -> &str {
                &self.version
            }

            fn numbers(&self) -> $crate::layout::Numbers {
                vec![$(($key, self.$field.into()),)*]
            }

            fn set(&mut self, name: &str, value: Option<i64>) {
                match name {
                    $($key => layout_struct!(@set self.$field, value, $kind $(<$inner>)?),)*
                    _ => {}
                }
            }
        }
    };
}
pub(crate) use layout_struct;
