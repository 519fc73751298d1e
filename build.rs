//! Checks the shaders: what naga, wgpu's own front end, refuses here would fail on the user's GPU.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shaders");
    #[cfg(feature = "gpu")]
    for path in shaders::paths() {
        if let Err(message) = shaders::check(&path) {
            println!("cargo::error=the shader {} is not valid", path.display());
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

#[cfg(feature = "gpu")]
mod shaders {
    use std::fs;
    use std::path::{Path, PathBuf};

    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Every shader, in the order of their names.
    pub fn paths() -> Vec<PathBuf> {
        let entries = fs::read_dir("shaders").into_iter().flatten().flatten().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "wgsl")).collect();
        paths.sort();
        paths
    }

    /// Parses and validates one shader. Capabilities are none: all that WebGPU asks of every GPU is enough.
    pub fn check(path: &Path) -> Result<(), String> {
        let source = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let module = naga::front::wgsl::parse_str(&source).map_err(|error| error.emit_to_string(&source))?;
        Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .map_err(|error| error.emit_to_string(&source))?;
        let names: Vec<&str> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        let wanted = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        match names[..] {
            [name] if name == wanted => Ok(()),
            _ => Err(format!("its entry points are {names:?}, and should be one, `{wanted}`")),
        }
    }
}
