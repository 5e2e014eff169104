use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Image, ImageError, check};
use crate::wire::box_size::{CPUS, MEMORY_MIB, PIDS};

/// The images that boxes can be made from, by name.
///
/// One is built in: [`IDLE`](Self::IDLE), which waits to be stopped.
///
/// ```
/// use vmm_rest::{Image, ImageTable};
///
/// let table = ImageTable::builtin().with("web", Image::command(["python3", "-m", "http.server"]));
/// assert!(table.get("web:latest").is_some());
/// ```
#[derive(Clone, Debug)]
pub struct ImageTable {
    images: BTreeMap<String, Image>,
}

impl ImageTable {
    /// The image that a box is made from unless the request says otherwise.
    pub const IDLE: &str = "idle";

    /// Only [`IDLE`](Self::IDLE), as `sleep infinity`.
    pub fn builtin() -> Self {
        Self::with_idle(Image::command(["sleep", "infinity"]))
    }

    /// Only [`IDLE`](Self::IDLE), as this image: for a program that can wait to be stopped itself,
    /// and then needs nothing else on the host.
    pub fn with_idle(idle: Image) -> Self {
        Self {
            images: BTreeMap::from([(Self::IDLE.to_owned(), idle)]),
        }
    }

    /// Adds an image, or replaces it.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, image: Image) -> Self {
        self.images.insert(name.into(), image);
        self
    }

    /// Adds the images of a folder: its files `*.json`, see [`Image`]. One of the name
    /// [`IDLE`](Self::IDLE) replaces the one that is built in.
    ///
    /// Reads the disk: to be called before anything is served, or where one may block.
    ///
    /// # Errors
    ///
    /// [`ImageError`], for the first file that is no image.
    pub fn with_folder(mut self, folder: &Path) -> Result<Self, ImageError> {
        let mut added = BTreeMap::new();
        for path in files(folder)? {
            let (name, image) = read(&path)?;
            if added.insert(name.clone(), image).is_some() {
                return Err(ImageError::Twice { path, name });
            }
        }
        self.images.extend(added);
        Ok(self)
    }

    /// By its name; a tag `latest` may be left out or added.
    pub fn get(&self, name: &str) -> Option<&Image> {
        const LATEST: &str = ":latest";
        let images = &self.images;
        images
            .get(name)
            .or_else(|| images.get(name.strip_suffix(LATEST)?))
            .or_else(|| images.get(&format!("{name}{LATEST}")))
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.images.keys().map(String::as_str)
    }
}

impl Default for ImageTable {
    fn default() -> Self {
        Self::builtin()
    }
}

/// In order, so that the same folder always gives the same error.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |source| ImageError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn read(path: &Path) -> Result<(String, Image), ImageError> {
    let failed = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |reason: String| ImageError::Malformed {
        path: path.to_owned(),
        reason,
    };
    // A pipe would be waited for.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(malformed("it is no file".to_owned()));
    }
    let text = fs::read(path).map_err(failed)?;
    // An array of an image's values would be taken for one.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(malformed("it is no JSON object".to_owned()));
    }
    let image: Image =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    let stem = path.file_stem().unwrap_or_default();
    let name = match &image.name {
        Some(name) => name.clone(),
        None => match stem.to_str() {
            Some(stem) => stem.to_owned(),
            None => return Err(malformed("its name is not UTF-8".to_owned())),
        },
    };
    if name.is_empty() || name.contains(char::is_control) {
        return Err(malformed(format!("{name:?} cannot be its name")));
    }
    check(&image.payload(None, None), "command").map_err(malformed)?;
    for (field, value, range) in [
        ("cpus", image.cpus, CPUS),
        ("memory_mib", image.memory_mib, MEMORY_MIB),
        ("pids", image.pids, PIDS),
    ] {
        if value.is_some_and(|value| !range.contains(&value)) {
            return Err(malformed(format!("{field} is not within {range:?}")));
        }
    }
    Ok((name, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_adds_to_what_is_built_in() {
        let folder = folder(&[
            ("web.json", r#"{"command": ["true"], "env": {"A": "b"}}"#),
            ("tagged.json", r#"{"name": "py:3.11", "command": ["true"]}"#),
            ("notes.txt", "not an image"),
            (".web.json.swp", "{"),
            (".hidden.json", "{"),
        ]);
        let table = ImageTable::builtin().with_folder(folder.path()).unwrap();
        assert_eq!(
            table.names().collect::<Vec<_>>(),
            ["idle", "py:3.11", "web"]
        );
        assert_eq!(table.get("web").unwrap().env["A"], "b");
        assert!(table.get("web:latest").is_some() && table.get("py").is_none());
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (text, wanted) in [
            ("{", "EOF"),
            ("", "no JSON object"),
            (r#"["name"]"#, "no JSON object"),
            (r#"{"comand": ["true"]}"#, "unknown field `comand`"),
            ("{}", "command: there is no command"),
            (
                r#"{"command": [""]}"#,
                "command: the name of the program is empty",
            ),
            (r#"{"command": ["a\u0000"]}"#, "command: no argument"),
            (r#"{"command": ["true"], "env": {"A=B": ""}}"#, "A=B"),
            (
                r#"{"command": ["true"], "working_dir": "srv"}"#,
                "working_dir",
            ),
            (r#"{"command": ["true"], "name": ""}"#, "name"),
            (r#"{"command": ["true"], "name": "a\nb"}"#, "name"),
            (r#"{"command": ["true"], "cpus": 0}"#, "cpus"),
            (r#"{"command": ["true"], "pids": 0}"#, "pids"),
            (
                r#"{"command": ["true"], "console": {"max_bytes": 1}}"#,
                "console: max_bytes",
            ),
            (
                r#"{"command": ["true"], "console": {"files": 0}}"#,
                "console: max_bytes",
            ),
        ] {
            let folder = folder(&[("bad.json", text)]);
            let refused = ImageTable::builtin().with_folder(folder.path());
            let message = refused.unwrap_err().to_string();
            assert!(
                message.contains("bad.json") && message.contains(wanted),
                "{message}"
            );
        }
        let pipe = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&pipe.path().join("p.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = ImageTable::builtin().with_folder(pipe.path()).unwrap_err();
        assert!(refused.to_string().contains("no file"), "{refused}");
        let nowhere = ImageTable::builtin().with_folder(Path::new("/nonexistent"));
        assert!(matches!(nowhere, Err(ImageError::Read { .. })));
    }

    #[test]
    fn two_files_cannot_make_the_same_image() {
        let folder = folder(&[
            ("a.json", r#"{"name": "b", "command": ["true"]}"#),
            ("b.json", r#"{"command": ["true"]}"#),
        ]);
        let refused = ImageTable::builtin().with_folder(folder.path());
        assert!(matches!(refused, Err(ImageError::Twice { name, .. }) if name == "b"));
    }
}
