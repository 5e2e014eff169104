use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use crate::{BuildError, tool};

/// The kernel modules of a directory such as `/lib/modules/VERSION`.
///
/// The dependencies are those that the modules themselves list, so the directory needs no
/// `modules.dep`, which depmod(8) writes when a kernel is installed.
#[derive(Debug)]
pub(crate) struct Modules {
    dir: PathBuf,
    /// By name, with underscores.
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module that the agent loads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// The module, uncompressed: not every kernel can decompress one.
    pub(crate) contents: Vec<u8>,
}

impl Modules {
    pub(crate) fn read(dir: &Path) -> Result<Self, BuildError> {
        let mut files = BTreeMap::new();
        find(dir, &mut files)?;
        // A directory without the list has no built-in modules.
        let list = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let builtin = list.lines().filter_map(|path| name_of(Path::new(path)));
        Ok(Self {
            dir: dir.to_owned(),
            files,
            builtin: builtin.collect(),
        })
    }

    /// Returns the modules with these names and those that they depend on, in the order in which they
    /// can be loaded. A name is left out if the kernel has it built in, and an optional one also if it
    /// is not found.
    pub(crate) fn select(
        &self,
        required: &[&str],
        optional: &[&str],
    ) -> Result<Vec<Module>, BuildError> {
        let mut selected = Vec::new();
        let available = optional
            .iter()
            .filter(|name| self.files.contains_key(**name));
        for name in required.iter().chain(available) {
            self.add(name, &mut BTreeSet::new(), &mut selected)?;
        }
        Ok(selected)
    }

    /// Adds a module after those that it depends on. `open` has those whose dependencies are being
    /// added.
    fn add(
        &self,
        name: &str,
        open: &mut BTreeSet<String>,
        selected: &mut Vec<Module>,
    ) -> Result<(), BuildError> {
        let is_selected = selected.iter().any(|module| module.name == name);
        if is_selected || self.builtin.contains(name) || !open.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .files
            .get(name)
            .ok_or_else(|| BuildError::ModuleNotFound {
                name: name.to_owned(),
                dir: self.dir.clone(),
            })?;
        let contents = decompress(path)?;
        let dependencies = dependencies(&contents).map_err(|reason| BuildError::NotAModule {
            path: path.clone(),
            reason,
        })?;
        for dependency in dependencies {
            self.add(&dependency, open, selected)?;
        }
        selected.push(Module {
            name: name.to_owned(),
            contents,
        });
        Ok(())
    }
}

/// Adds the modules of a directory tree. Does not follow symbolic links, which lead to the sources of the
/// kernel.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), BuildError> {
    for entry in fs::read_dir(dir).map_err(BuildError::read(dir))? {
        let entry = entry.map_err(BuildError::read(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(BuildError::read(&path))?;
        if kind.is_dir() {
            find(&path, files)?;
        } else if kind.is_file()
            && let Some(name) = name_of(&path)
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// Returns the name of a module: that of its file, in which a dash and an underscore are the same.
fn name_of(path: &Path) -> Option<String> {
    let (name, compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(compression, "" | ".gz" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

fn decompress(path: &Path) -> Result<Vec<u8>, BuildError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let (program, package) = match extension {
        Some("gz") => ("gzip", "gzip"),
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return fs::read(path).map_err(BuildError::read(path)),
    };
    let mut command = tool::command(program);
    tool::run(program, package, command.arg("-dc").arg(path))
}

/// Returns the names of the modules that a module depends on.
fn dependencies(module: &[u8]) -> Result<Vec<String>, String> {
    const FIELD: &[u8] = b"depends=";
    let file = object::File::parse(module).map_err(|error| error.to_string())?;
    let section = file
        .section_by_name(".modinfo")
        .ok_or("no section .modinfo")?;
    let fields = section.data().map_err(|error| error.to_string())?;
    let list = fields
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(FIELD))
        .unwrap_or_default();
    let names = String::from_utf8_lossy(list);
    let names = names.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests;
