//! Needles: byte strings to be found at any address, across frame borders.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::{Location, SignatureError, Text};
use super::structure::power_of_two;

/// Longest needle: what a scan must look past the end of a chunk.
const MAX_BYTES: usize = 4096;

/// A byte string that is looked for everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needle {
    /// Name, unique among structures and needles.
    pub name: String,
    /// What it is.
    pub description: String,
    /// The bytes, 1 to 4,096 of them.
    pub bytes: Vec<u8>,
    /// The physical address of the first byte is a multiple of this power of two.
    pub align: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNeedle {
    name: Spanned<String>,
    #[serde(default)]
    description: String,
    text: Option<Spanned<String>>,
    hex: Option<Spanned<String>>,
    align: Option<Spanned<u64>>,
}

impl RawNeedle {
    pub(super) fn check(self, text: Text<'_>) -> Result<(Needle, Location), SignatureError> {
        let name = self.name.get_ref().clone();
        if name.is_empty() {
            return Err(text.error(self.name.span(), "the name is empty"));
        }
        let (bytes, span) = match (&self.text, &self.hex) {
            (Some(literal), None) => (literal.get_ref().as_bytes().to_vec(), literal.span()),
            (None, Some(hex)) => {
                let bytes = parse_hex(hex.get_ref()).map_err(|reason| text.error(hex.span(), reason))?;
                (bytes, hex.span())
            }
            _ => return Err(text.error(self.name.span(), format!("needle `{name}` needs either `text` or `hex`"))),
        };
        if bytes.is_empty() {
            return Err(text.error(span, format!("needle `{name}` is empty")));
        }
        if bytes.len() > MAX_BYTES {
            return Err(text.error(span, format!("needle `{name}` has {} bytes, at most {MAX_BYTES}", bytes.len())));
        }
        let align = power_of_two(self.align.as_ref(), 1, text)?;
        let location = text.at(self.name.span());
        Ok((Needle { name, description: self.description, bytes, align }, location))
    }
}

/// Bytes of a string of hexadecimal digit pairs; white space between them is ignored.
fn parse_hex(hex: &str) -> Result<Vec<u8>, String> {
    let digits = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(format!("`{c}` is not a hexadecimal digit")))
        .collect::<Result<Vec<u8>, String>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(format!("{} hexadecimal digits: each byte needs two", digits.len()));
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
