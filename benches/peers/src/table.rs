//! The figures of one job, as Markdown and as JSON.

use std::fmt;

use serde_json::{Value, json};

pub struct Table {
    pub job: String,
    /// What everyone in the table found.
    pub hits: usize,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub peer: &'static str,
    pub version: String,
    /// How many bytes it searched.
    pub bytes: usize,
    pub rounds: Vec<Round>,
}

/// Speeds of one search, and of REF right before it, in GB/s.
pub struct Round {
    pub read: f64,
    pub search: f64,
}

impl Row {
    /// How much of REF the search reaches, in the median.
    fn share(&self) -> f64 {
        let [_, share, _] = spread(self.rounds.iter().map(|round| round.search / round.read));
        share
    }
}

impl Table {
    pub fn json(&self) -> impl Iterator<Item = Value> + '_ {
        self.rows.iter().map(|row| {
            let [least, middle, most] = spread(row.rounds.iter().map(|round| round.search));
            json!({
                "job": self.job, "peer": row.peer, "version": row.version, "hits": self.hits, "bytes": row.bytes, "threads": 1,
                "gb_per_s": middle, "gb_per_s_min": least, "gb_per_s_max": most, "ratio_to_read": row.share(),
            })
        })
    }
}

/// Fastest first.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.rows.iter().flat_map(|row| &row.rounds);
        let [least, middle, most] = spread(rounds.map(|round| round.read));
        writeln!(f, "`{}`, {} hits; REF {middle:.1} GB/s ({least:.1}–{most:.1})\n", self.job, self.hits)?;
        writeln!(f, "| | version | GB/s | min–max | share of REF |\n|---|---|---:|---:|---:|")?;
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| b.share().total_cmp(&a.share()));
        for row in rows {
            let [least, middle, most] = spread(row.rounds.iter().map(|round| round.search));
            let (peer, version, share) = (row.peer, &row.version, row.share());
            writeln!(f, "| {peer} | {version} | {middle:.2} | {least:.2}–{most:.2} | {share:.3} |")?;
        }
        Ok(())
    }
}

/// Least, median, greatest.
fn spread(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let figure = |n: usize| figures.get(n).copied().unwrap_or(f64::NAN);
    [figure(0), figure(figures.len() / 2), figure(figures.len().saturating_sub(1))]
}
