//! Fair shares of a total: requests for little are met in full, whatever the others need.

/// The largest share such that all together take no more than `total`: those that need less get what they need, and the
/// others get the same amount.
pub(crate) fn share(needs: impl IntoIterator<Item = u64>, total: u64) -> u64 {
    let mut needs: Vec<u64> = needs.into_iter().collect();
    needs.sort_unstable();
    let (mut left, mut count) = (total, needs.len() as u64);
    for need in needs {
        if need > left / count {
            return left / count;
        }
        left -= need;
        count -= 1;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_need_takes_from_a_smaller_one() {
        assert_eq!(share([], 5), u64::MAX);
        assert_eq!(share([3, 2], 5), u64::MAX);
        assert_eq!(share([100, 2, 100], 12), 5);
        assert_eq!(share([u64::MAX, 10, 1], 12), 5);
        assert_eq!(share([u64::MAX, 1, 1], 12), 10);
        assert_eq!(share([7; 4], 2), 0);
    }
}
