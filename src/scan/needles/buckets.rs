//! Which needles share a bucket: those that together let the fewest bytes of memory pass.

use super::window::{WINDOW, Window, share};

/// The two fields of a byte by which tables are indexed: its lowest and its highest bits.
pub(super) fn fields(byte: u8, field_bits: u32) -> [usize; 2] {
    [usize::from(byte) % (1 << field_bits), usize::from(byte) >> (u8::BITS - field_bits)]
}

/// Values of a field, and how much of memory has one of them there.
#[derive(Clone, Copy, Default)]
struct Admitted {
    values: u64,
    share: f32,
}

impl Admitted {
    const ALL: Self = Self { values: u64::MAX, share: 1.0 };

    fn with(self, other: Self) -> Self {
        if self.values | other.values == self.values {
            return self;
        }
        Self { values: self.values | other.values, share: (self.share + other.share).min(1.0) }
    }
}

/// What is admitted by both tables of each byte of the window.
#[derive(Clone, Copy, Default)]
struct Bucket([[Admitted; 2]; WINDOW]);

impl Bucket {
    fn with(mut self, other: &Self) -> Self {
        self.0
            .as_flattened_mut()
            .iter_mut()
            .zip(other.0.as_flattened())
            .for_each(|(own, other)| *own = own.with(*other));
        self
    }

    /// How much of memory passes, if fields were independent.
    fn share(&self) -> f32 {
        self.0.as_flattened().iter().map(|admitted| admitted.share).product()
    }
}

/// The number of the bucket of each window.
pub(super) fn assign(windows: &[Window], buckets: usize, field_bits: u32) -> Vec<usize> {
    let mut shares = [[0.0f32; 64]; 2];
    for byte in 0..=u8::MAX {
        for (shares, field) in shares.iter_mut().zip(fields(byte, field_bits)) {
            shares.get_mut(field).into_iter().for_each(|sum| *sum += share(byte));
        }
    }
    let alone = |window: &Window| {
        let mut bucket = Bucket([[Admitted::ALL; 2]; WINDOW]);
        for (admitted, byte) in bucket.0.iter_mut().zip(window.counting()) {
            for ((admitted, field), shares) in admitted.iter_mut().zip(fields(*byte, field_bits)).zip(&shares) {
                *admitted = Admitted { values: 1 << field, share: shares.get(field).copied().unwrap_or(1.0) };
            }
        }
        bucket
    };
    let mut order: Vec<(usize, Bucket)> = windows.iter().map(alone).enumerate().collect();
    // What passes often anyway comes first, so that little is added to it.
    order.sort_by(|(_, a), (_, b)| b.share().total_cmp(&a.share()));
    let mut filled = vec![Bucket::default(); buckets];
    let mut numbers = vec![0; windows.len()];
    for (window, own) in order {
        let grown = filled.iter().enumerate().map(|(number, bucket)| {
            let grown = bucket.with(&own);
            (grown.share() - bucket.share(), number, grown)
        });
        let Some((_, number, grown)) = grown.min_by(|(a, ..), (b, ..)| a.total_cmp(b)) else { continue };
        filled.get_mut(number).into_iter().for_each(|bucket| *bucket = grown);
        numbers.get_mut(window).into_iter().for_each(|own| *own = number);
    }
    numbers
}
