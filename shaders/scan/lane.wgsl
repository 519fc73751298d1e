// One lane for each frame, for adapters without subgroups.

const LANES: u32 = 64;

@compute @workgroup_size(64)
fn scan(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    for (var frame = invocation.x; frame < params.frame_count; frame += LANES * workgroups.x) {
        classes[frame] = class_of(look(frame, 0u, 1u));
    }
}
