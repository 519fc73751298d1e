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
    fn passing(&self, allowed: impl Iterator<Item = u16>) -> f64 {
        let of_column = |([low, high], allowed): (&[[f64; 256]; 2], u16)| {
            let [of_low, of_high] = allowed.to_le_bytes().map(usize::from);
            low.get(of_low).copied().unwrap_or_default() + high.get(of_high).copied().unwrap_or_default()
        };
        self.0.iter().zip(allowed).map(of_column).product()
    }

    /// The share that passes two buckets which are one.
    fn passing_both(&self, a: &Bucket, b: &Bucket) -> f64 {
        self.passing(a.allowed.iter().zip(&b.allowed).map(|(a, b)| a | b))
    }
}

/// Which entries share a bucket, so that few slots pass for an entry that they are not: shared by so many, and for each of the
/// smaller numbers that follow.
pub(super) fn share(columns: &[&Column], entries: usize, numbers: &[usize]) -> Vec<Vec<u64>> {
    let frequencies = Frequencies::new(columns);
    let alone = |entry| {
        let values = |column: &&Column| {
            let allow = column.table.iter().enumerate().filter(|(_, entries)| *entries >> entry & 1 != 0);
            allow.fold(0, |allowed, (value, _)| allowed | 1 << value)
        };
        let allowed: Vec<u16> = columns.iter().map(values).collect();
        Bucket { entries: 1u64 << entry, passing: frequencies.passing(allowed.iter().copied()), allowed }
    };
    let mut buckets: Vec<Option<Bucket>> = (0..entries).map(|entry| Some(alone(entry))).collect();
    // What it costs to put two together.
    let cost = |a: &Bucket, b: &Bucket| frequencies.passing_both(a, b) - a.passing - b.passing;
    let mut pairs = Vec::new();
    for (n, later) in buckets.iter().enumerate() {
        let earlier = buckets.iter().take(n).enumerate();
        pairs.extend(earlier.filter_map(|(m, earlier)| Some((cost(earlier.as_ref()?, later.as_ref()?), m, n))));
    }
    let mut left = entries;
    let shared_by = |number: &usize| {
        while left > *number {
            left -= 1;
            let best = pairs.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            let Some((_, m, n)) = best else { break };
            pairs.retain(|(_, a, b)| ![m, n].contains(a) && ![m, n].contains(b));
            let mut take = |n| buckets.get_mut(n).and_then(Option::take);
            let (Some(mut bucket), Some(other)) = (take(m), take(n)) else { break };
            bucket.passing = frequencies.passing_both(&bucket, &other);
            bucket.entries |= other.entries;
            bucket.allowed.iter_mut().zip(other.allowed).for_each(|(allowed, other)| *allowed |= other);
            let others = buckets.iter().enumerate();
            pairs.extend(others.filter_map(|(other, with)| Some((cost(&bucket, with.as_ref()?), m, other))));
            buckets.get_mut(m).into_iter().for_each(|place| *place = Some(bucket.clone()));
        }
        let mut buckets: Vec<&Bucket> = buckets.iter().flatten().collect();
        // Those that say something of the same columns go together.
        let says = |bucket: &&Bucket| bucket.allowed.iter().map(|allowed| *allowed == u16::MAX).collect::<Vec<_>>();
        buckets.sort_by_cached_key(says);
        buckets.into_iter().map(|bucket| bucket.entries).collect()
    };
    numbers.iter().map(shared_by).collect()
}
