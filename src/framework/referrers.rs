//! What refers to a tensor: attributes of modules, globals of imported Python modules, and everything reachable from
//! them through attributes, slots, containers and closures.

use std::collections::{BTreeMap, HashSet};

use super::NetworkModule;
use crate::addr::VirtAddr;
use crate::cpython::{Holders, Modules, Objects, Shape, Step};
use crate::model::Referrer;

/// How many objects may lie between a module and what it refers to.
const MAX_DEPTH: u8 = 8;
/// The same for modules of Python itself and of the libraries below. Only containers are followed there: these modules
/// hold more objects than all others together, but no tensors of the program.
const MAX_DEPTH_OF_LIBRARIES: u8 = 4;
/// Values that are looked at, in all modules together.
const MAX_VALUES: usize = 1 << 22;
/// Objects that are looked into.
const MAX_OBJECTS: usize = 1 << 17;
/// Referrers of one tensor that are listed.
const MAX_REFERRERS: usize = 16;
/// Maximum number of elements of a container that are visited if they can hold objects themselves.
const MAX_NESTED: usize = 1 << 10;

/// Where a path begins.
enum Start<'a> {
    Module { object: VirtAddr, name: &'a str },
    Global { module: &'a str, name: VirtAddr },
}

/// How far a path is followed.
#[derive(Clone, Copy)]
struct Reach {
    /// Objects that lie before the one that is reached.
    depth: u8,
    /// Whether the way began in a library.
    is_library: bool,
    /// Whether what is reached may be looked into.
    is_near: bool,
}

/// The predecessor of an object in its path.
#[derive(Clone, Copy)]
enum Before {
    /// The start with that number.
    Start(usize),
    /// The object with that number, and how it holds this one.
    Object(usize, Step),
}

/// A visited object; each is visited once, by its shortest path.
struct Node {
    object: VirtAddr,
    before: Before,
    reach: Reach,
}

/// What was found.
pub(super) struct Found {
    /// The referrers of each wanted object, shortest path first.
    pub(super) referrers: BTreeMap<VirtAddr, Vec<Referrer>>,
    /// Whether the search was complete.
    pub(super) is_whole: bool,
}

/// A search for the places that refer to certain objects, breadth first.
struct Search<'a> {
    objects: Objects<'a>,
    holders: Holders<'a>,
    wanted: HashSet<VirtAddr>,
    starts: Vec<Start<'a>>,
    nodes: Vec<Node>,
    /// What is looked into, or need not be: on ways from libraries, and on all others.
    seen: [HashSet<VirtAddr>; 2],
    found: BTreeMap<VirtAddr, Vec<Referrer>>,
    left: usize,
}

/// Searches for what refers to `wanted`, starting at the modules of networks and at those that Python has imported. The
/// former are not followed, because each is the start of its own paths. `packages` are those of the frameworks, whose own
/// modules hold no tensors of the program.
pub(super) fn search<'a>(
    objects: Objects<'a>,
    holders: Holders<'a>,
    wanted: HashSet<VirtAddr>,
    networks: &[NetworkModule<'a>],
    (modules, packages): (&'a Modules, &'a [&'static str]),
) -> Found {
    let mut search = Search {
        objects,
        holders,
        wanted,
        starts: Vec::new(),
        nodes: Vec::new(),
        seen: [(); 2].map(|()| networks.iter().map(|module| module.object).collect()),
        found: BTreeMap::new(),
        left: MAX_VALUES,
    };
    for NetworkModule { object, attributes } in networks {
        for (name, value) in attributes {
            search.start(Start::Module { object: *object, name }, *value, false);
        }
    }
    let library = Library::new(&objects, modules, packages);
    for (module, dict) in modules {
        let items = objects.dict(*dict).unwrap_or_default();
        let is_library = library.holds(&objects, module, &items);
        for (name, value) in items {
            search.start(Start::Global { module, name }, value, is_library);
        }
    }
    search.run();
    Found { referrers: search.found, is_whole: search.left > 0 && search.nodes.len() < MAX_OBJECTS }
}

impl<'a> Search<'a> {
    fn start(&mut self, start: Start<'a>, value: VirtAddr, is_library: bool) {
        self.starts.push(start);
        self.visit(value, Before::Start(self.starts.len() - 1), Reach { depth: 0, is_library, is_near: true });
    }

    fn run(&mut self) {
        let mut next = 0;
        // A large container takes long to read, even where nothing in it may be looked at any more.
        while let Some(Node { object, reach, .. }) = self.nodes.get(next).filter(|_| self.left > 0) {
            let (object, reach) = (*object, *reach);
            if let Some(kind) = self.holders.kind(object) {
                // Empty entries are no values, but must be read as well: containers can share millions of them.
                self.left = self.left.saturating_sub(self.holders.entries(object, &kind));
                for (index, (step, value)) in self.holders.held(object, &kind, self.left).into_iter().enumerate() {
                    let reach = Reach { depth: reach.depth + 1, is_near: index < MAX_NESTED, ..reach };
                    self.visit(value, Before::Object(next, step), reach);
                }
            }
            next += 1;
        }
    }

    /// Notes a value that is wanted, and one that can hold others for later; large tables are looked through for
    /// what is wanted, not for what may hold it.
    fn visit(&mut self, value: VirtAddr, before: Before, reach: Reach) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        if self.wanted.contains(&value) {
            let count = self.found.get(&value).map_or(0, Vec::len);
            if count < MAX_REFERRERS {
                let referrer = self.referrer(before);
                self.found.entry(value).or_default().push(referrer);
            }
        }
        let max_depth = if reach.is_library { MAX_DEPTH_OF_LIBRARIES } else { MAX_DEPTH };
        let [of_libraries, of_others] = &mut self.seen;
        let seen = if reach.is_library { of_libraries } else { of_others };
        if !reach.is_near || reach.depth >= max_depth || self.nodes.len() >= MAX_OBJECTS || seen.contains(&value) {
            return;
        }
        let Some(kind) = self.holders.kind(value) else { return };
        let is_container = matches!(kind.shape, Shape::List | Shape::Tuple | Shape::Dict);
        // What a library only keeps, another way may still lead to.
        if is_container || !reach.is_library {
            seen.insert(value);
            self.nodes.push(Node { object: value, before, reach });
        }
    }

    /// The path to a value, as text.
    fn referrer(&self, mut before: Before) -> Referrer {
        let mut steps = Vec::new();
        let start = loop {
            match before {
                Before::Start(number) => break self.starts.get(number),
                Before::Object(number, step) => {
                    steps.push(self.holders.written(step));
                    match self.nodes.get(number) {
                        Some(node) => before = node.before,
                        None => break None,
                    }
                }
            }
        };
        let steps: String = steps.into_iter().rev().collect();
        match start {
            Some(Start::Module { object, name }) => {
                Referrer::Module { object: *object, path: format!("{name}{steps}") }
            }
            Some(Start::Global { module, name }) => {
                let name = self.objects.str(*name).unwrap_or_else(|_| format!("[at {name}]"));
                Referrer::Global { path: format!("{module}.{name}{steps}") }
            }
            None => Referrer::Global { path: steps },
        }
    }
}

/// Identifies modules of Python itself and of frameworks.
struct Library<'a> {
    packages: &'a [&'static str],
    /// The folder of Python's own modules, and the `str` under which all modules have their file.
    standard: Option<(String, VirtAddr)>,
}

impl<'a> Library<'a> {
    fn new(objects: &Objects<'_>, modules: &Modules, packages: &'a [&'static str]) -> Self {
        let standard = || {
            let items = objects.dict(*modules.get("os")?).ok()?;
            let is_file = |(key, _): &(VirtAddr, VirtAddr)| objects.str(*key).is_ok_and(|key| key == "__file__");
            let (key, file) = items.into_iter().find(is_file)?;
            let file = objects.str(file).ok()?;
            Some((file.get(..=file.rfind('/')?)?.to_owned(), key))
        };
        Self { packages, standard: standard() }
    }

    /// Whether a module with these items is one of them.
    fn holds(&self, objects: &Objects<'_>, module: &str, items: &[(VirtAddr, VirtAddr)]) -> bool {
        if module.split('.').next().is_some_and(|package| self.packages.contains(&package)) {
            return true;
        }
        let Some((folder, key)) = &self.standard else { return false };
        // Names are interned: one object is the key in all modules.
        let file = items.iter().find(|(name, _)| name == key).and_then(|(_, file)| objects.str(*file).ok());
        // Other people's packages lie in a folder of that folder.
        file.is_some_and(|file| file.strip_prefix(folder.as_str()).is_some_and(|rest| !rest.contains("-packages/")))
    }
}
