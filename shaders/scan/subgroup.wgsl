// One subgroup for each frame, so that lanes read what lies side by side.

@compute @workgroup_size(128)
fn scan(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // A subgroup need not be full.
    let lane = subgroupExclusiveAdd(1u);
    let lanes = min(1u << firstLeadingBit(subgroupAdd(1u)), PAIRS / AT_ONCE);
    for (var frame = workgroup.x * subgroups + subgroup; frame < params.frame_count; frame += workgroups.x * subgroups) {
        var seen = Seen(0u, vec2(0u), vec2(0u));
        if lane < lanes {
            seen = look(frame, lane, lanes);
        }
        let all = subgroupOr(seen.all);
        let entries = subgroupOr(vec4(seen.present, seen.leaves));
        if lane == 0 {
            classes[frame] = class_of(Seen(all, entries.xy, entries.zw));
        }
    }
}
