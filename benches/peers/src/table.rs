//! The figures of one job, as Markdown and as JSON.

use std::fmt;

use serde_json::{Value, json};

pub struct Table {
    pub job: String,
    /// What everyone in the table found.
    pub hits: usize,
    /// REF of each round, in GB/s.
    pub reads: Vec<f64>,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub peer: &'static str,
    pub version: String,
    /// GB/s of each round.
    pub rates: Vec<f64>,
}

impl Table {
    /// How much of REF a row reaches in the same round, in the median.
    fn share(&self, row: &Row) -> f64 {
        median(row.rates.iter().zip(&self.reads).map(|(rate, read)| rate / read))
    }

    pub fn json(&self) -> impl Iterator<Item = Value> + '_ {
        self.rows.iter().map(|row| {
            json!({
                "job": self.job, "peer": row.peer, "version": row.version, "hits": self.hits, "threads": 1,
                "gb_per_s": median(row.rates.iter().copied()), "ratio_to_read": self.share(row),
                "rounds_gb_per_s": row.rates, "rounds_read_gb_per_s": self.reads,
            })
        })
    }
}

/// Fastest first.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, middle, most] = spread(&self.reads);
        writeln!(f, "`{}`, {} hits; REF {middle:.1} GB/s ({least:.1}–{most:.1})\n", self.job, self.hits)?;
        writeln!(f, "| | version | GB/s | min–max | share of REF |\n|---|---|---:|---:|---:|")?;
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| self.share(b).total_cmp(&self.share(a)));
        for row in rows {
            let [least, middle, most] = spread(&row.rates);
            let (peer, version, share) = (row.peer, &row.version, self.share(row));
            writeln!(f, "| {peer} | {version} | {middle:.2} | {least:.2}–{most:.2} | {share:.3} |")?;
        }
        Ok(())
    }
}

/// Least, median, greatest.
fn spread(figures: &[f64]) -> [f64; 3] {
    let (least, most) = (figures.iter().copied().reduce(f64::min), figures.iter().copied().reduce(f64::max));
    [least.unwrap_or(f64::NAN), median(figures.iter().copied()), most.unwrap_or(f64::NAN)]
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
