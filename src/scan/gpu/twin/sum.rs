//! The twin of `sum.wgsl`.

const LANES: usize = 128;

/// Adds all words of `memory` to `total`, by that many `workgroups`.
pub(in super::super) fn sum(workgroups: usize, memory: &[[u32; 4]], total: &mut u32) {
    for workgroup in 0..workgroups {
        let mut partial = 0u32;
        for lane in 0..LANES {
            let words = memory.iter().skip(workgroup * LANES + lane).step_by(workgroups * LANES);
            partial = words.flatten().fold(partial, |sum, word| sum.wrapping_add(*word));
        }
        *total = total.wrapping_add(partial);
    }
}
