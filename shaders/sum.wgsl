// The sum of all words of a buffer: how fast memory can be read at all, for the benchmark to compare with.
// Its twin: src/scan/gpu/twin/sum.rs.

@group(0) @binding(0) var<storage, read> memory: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> total: atomic<u32>;

const LANES: u32 = 128;

var<workgroup> partial: atomic<u32>;

@compute @workgroup_size(128)
fn sum(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var own = vec4(0u);
    for (var i = workgroup.x * LANES + lane; i < arrayLength(&memory); i += workgroups.x * LANES) {
        own += memory[i];
    }
    atomicAdd(&partial, own.x + own.y + own.z + own.w);
    workgroupBarrier();
    if lane == 0 {
        atomicAdd(&total, atomicLoad(&partial));
    }
}
