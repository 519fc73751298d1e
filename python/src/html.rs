//! Tables for notebooks. Everything from a dump is escaped.

use html_escape::encode_text;
use tensorcarve::report::printable;

/// A table with these headings.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| {
        let cells: Vec<String> =
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", encode_text(&printable(cell)))).collect();
        format!("<tr>{}</tr>", cells.concat())
    };
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let rows: Vec<String> = rows.into_iter().map(|row| cells("td", &row)).collect();
    format!("<table><thead>{}</thead><tbody>{}</tbody></table>", cells("th", &headings), rows.concat())
}
