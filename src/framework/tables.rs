//! Tables in the layout files of frameworks.

use serde::Deserialize;

use crate::cpython::MissingField;
use crate::signature;

/// Why the files of a signature set do not give the layouts of a framework.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An offset is missing.
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

/// A table of a layout file, in the form that the caller asks for.
pub(super) fn table<T: for<'de> Deserialize<'de>>(
    layout: &signature::Layout,
    name: &'static str,
) -> Result<T, LayoutError> {
    let error = |reason: String| LayoutError::Table { version: layout.version.clone(), table: name, reason };
    let value = layout.table(name).ok_or_else(|| error("it is missing".to_owned()))?;
    value.clone().try_into().map_err(|e: toml::de::Error| error(e.message().to_owned()))
}
