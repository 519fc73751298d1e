use tensorcarve::{addr::*, dump::*, paging::*, scan::*, signature::*};
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let f = std::fs::File::open(&path).unwrap();
    let map = unsafe { memmap2::Mmap::map(&f).unwrap() };
    let mut ranges = vec![];
    let u = |o: usize| u64::from_le_bytes(map[o..o + 8].try_into().unwrap());
    if &map[..4] == b"EMiL" {
        let mut o = 0;
        while o < map.len() {
            let (s, e) = (u(o + 8), u(o + 16));
            ranges.push(MemoryRange { start: PhysAddr(s), end: PhysAddr(e + 1), offset: FileOffset(o as u64 + 32) });
            o += 32 + (e - s + 1) as usize;
        }
    } else if &map[1..4] == b"ELF" {
        let ph = u(32) as usize;
        let n = u16::from_le_bytes(map[56..58].try_into().unwrap());
        for i in 0..n as usize {
            let b = ph + 56 * i;
            if map[b] == 1 {
                let pa = u(b + 24);
                ranges.push(MemoryRange {
                    start: PhysAddr(pa),
                    end: PhysAddr(pa + u(b + 32)),
                    offset: FileOffset(u(b + 8)),
                });
            }
        }
    } else {
        ranges.push(MemoryRange { start: PhysAddr(0), end: PhysAddr(map.len() as u64), offset: FileOffset(0) });
    }
    let memory = PhysicalMemory::mapped(map, ranges).unwrap();
    let sigs = Signatures::load(None).unwrap();
    let t = std::time::Instant::now();
    let r = scan(&memory, &sigs, Backend::detect_best(), &|_| ());
    eprintln!("scan {:?} hits {}", t.elapsed(), r.hits.len());
    for h in &r.hits {
        println!("{} {:?}", sigs.name(h.signature).unwrap(), h);
    }
    let t = std::time::Instant::now();
    let d = discover(&memory, sigs.mmu().unwrap(), &r.frames);
    eprintln!("discover {:?}", t.elapsed());
    for s in &d.spaces {
        println!("{s:?}");
    }
    println!("{:?} {:?}", d.tried, d.warnings);
    for h in &r.hits {
        for s in &d.spaces {
            let a = AddressSpace::new(&memory, sigs.mmu().unwrap(), s.root, s.levels);
            if let Ok(t) = a.translate(VirtAddr(h.value + 8)) {
                if t.pa == h.anchor {
                    println!("type at {:x} in {}", h.value, s.root);
                    let t = std::time::Instant::now();
                    let mut b = 1 << 20;
                    let m = a.user_mappings(&mut b).unwrap();
                    println!(
                        "{} mappings {} MB {:?}",
                        m.len(),
                        m.iter().map(|m| m.len).sum::<u64>() >> 20,
                        t.elapsed()
                    );
                }
            }
        }
    }
}
