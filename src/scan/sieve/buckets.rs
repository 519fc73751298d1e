//! The entries of a sieve in buckets: a byte has room for eight of them.

use super::digits::Column;

/// Entries that share a bit.
#[derive(Clone)]
struct Bucket {
    entries: u64,
    /// The values of each column that any of them allows.
    allowed: Vec<u16>,
    /// The share of slots that is expected to pass.
    passing: f64,
}

/// For each column and each set of its values how often one of them is seen: the lower eight values, and the upper ones.
struct Frequencies(Vec<[[f64; 256]; 2]>);

impl Frequencies {
    fn new(columns: &[&Column]) -> Self {
        let of_column = |column: &&Column| {
            // A little of each value, for none is impossible.
            let mut counts = [1.0 / 16.0; 16];
            for value in column.seen.iter().flatten() {
                counts.get_mut(usize::from(*value)).into_iter().for_each(|count| *count += 1.0);
            }
            let all: f64 = counts.iter().sum();
            let of_half = |half: &[f64]| {
                std::array::from_fn(|set| {
                    let in_set = half.iter().enumerate().filter(|(value, _)| set >> value & 1 != 0);
                    in_set.map(|(_, count)| count / all).sum()
                })
            };
            let (low, high) = counts.split_at(8);
            [of_half(low), of_half(high)]
        };
        Self(columns.iter().map(of_column).collect())
    }

    /// The share of slots that pass, if the columns know nothing of each other.
    fn passing(&self, allowed: &[u16]) -> f64 {
        let of_column = |([low, high], allowed): (&[[f64; 256]; 2], &u16)| {
            let [of_low, of_high] = allowed.to_le_bytes().map(usize::from);
            low.get(of_low).copied().unwrap_or_default() + high.get(of_high).copied().unwrap_or_default()
        };
        self.0.iter().zip(allowed).map(of_column).product()
    }

    fn merged(&self, a: &Bucket, b: &Bucket) -> Bucket {
        let allowed: Vec<u16> = a.allowed.iter().zip(&b.allowed).map(|(a, b)| a | b).collect();
        Bucket { entries: a.entries | b.entries, passing: self.passing(&allowed), allowed }
    }
}

/// Which entries share a bucket: at most `most` buckets, so that few slots pass for an entry that they are not.
pub(super) fn share(columns: &[&Column], entries: usize, most: usize) -> Vec<u64> {
    let frequencies = Frequencies::new(columns);
    let mut buckets: Vec<Option<Bucket>> = (0..entries)
        .map(|entry| {
            let values = |column: &&Column| {
                let allow = column.table.iter().enumerate().filter(|(_, entries)| *entries >> entry & 1 != 0);
                allow.fold(0, |allowed, (value, _)| allowed | 1 << value)
            };
            let allowed: Vec<u16> = columns.iter().map(values).collect();
            Some(Bucket { entries: 1 << entry, passing: frequencies.passing(&allowed), allowed })
        })
        .collect();
    // What it costs to put two together.
    let cost = |a: &Bucket, b: &Bucket| frequencies.merged(a, b).passing - a.passing - b.passing;
    let at = |buckets: &[Option<Bucket>], n: usize| buckets.get(n).cloned().flatten();
    let mut pairs = Vec::new();
    for (n, later) in buckets.iter().enumerate() {
        let earlier = buckets.iter().take(n).enumerate();
        pairs.extend(earlier.filter_map(|(m, earlier)| Some((cost(earlier.as_ref()?, later.as_ref()?), m, n))));
    }
    for _ in most..entries {
        let best = pairs.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let Some((_, m, n)) = best else { break };
        let (Some(a), Some(b)) = (at(&buckets, m), at(&buckets, n)) else { break };
        let merged = frequencies.merged(&a, &b);
        pairs.retain(|(_, a, b)| ![m, n].contains(a) && ![m, n].contains(b));
        buckets.get_mut(n).into_iter().for_each(|bucket| *bucket = None);
        let others = buckets.iter().enumerate().filter(|(other, _)| *other != m);
        pairs.extend(others.filter_map(|(other, bucket)| Some((cost(&merged, bucket.as_ref()?), m, other))));
        buckets.get_mut(m).into_iter().for_each(|bucket| *bucket = Some(merged.clone()));
    }
    let mut buckets: Vec<Bucket> = buckets.into_iter().flatten().collect();
    // Those that say something of the same columns go together.
    let says = |bucket: &Bucket| bucket.allowed.iter().map(|allowed| *allowed == u16::MAX).collect::<Vec<_>>();
    buckets.sort_by_cached_key(says);
    buckets.into_iter().map(|bucket| bucket.entries).collect()
}
