use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Image;

/// Why the image table could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The folder, or a file in it, cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path of the folder or file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file is not a valid image.
    #[error("{} is not a valid image: {reason}; correct it, or move it out of the folder", path.display())]
    Malformed {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with the file, and where.
        reason: String,
    },
    /// Two files define an image of the same name.
    #[error("{} defines the image {name:?} a second time; rename one of them", path.display())]
    Duplicate {
        /// The path of the second file.
        path: PathBuf,
        /// The name of the image.
        name: String,
    },
}

/// The images that boxes can be created from, by name.
///
/// The image [`IDLE`](Self::IDLE), which waits until the box is stopped, is built in.
///
/// ```
/// use vmm_runtime::{Image, ImageTable};
///
/// let table = ImageTable::builtin().with("web", Image::command(["python3", "-m", "http.server"]));
/// assert!(table.get("web:latest").is_some());
/// ```
#[derive(Clone, Debug)]
pub struct ImageTable {
    images: BTreeMap<String, Image>,
}

impl ImageTable {
    /// The name of the built-in image.
    pub const IDLE: &str = "idle";

    /// Creates a table with only [`IDLE`](Self::IDLE), which runs `sleep infinity`.
    pub fn builtin() -> Self {
        Self::with_idle(Image::command(["sleep", "infinity"]))
    }

    /// Creates a table with only [`IDLE`](Self::IDLE), defined by `idle`. A program that can wait for
    /// a stop itself uses this to avoid the dependency on `sleep`.
    pub fn with_idle(idle: Image) -> Self {
        Self {
            images: BTreeMap::from([(Self::IDLE.to_owned(), idle)]),
        }
    }

    /// Adds an image, or replaces the one of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, image: Image) -> Self {
        self.images.insert(name.into(), image);
        self
    }

    /// Adds the images of a folder: its files `*.json`, in the format of [`Image`]. Hidden files are
    /// skipped. An image named [`IDLE`](Self::IDLE) replaces the built-in one.
    ///
    /// This function blocks: in async code, call it with `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`ImageError`] for the first file that is not a valid image.
    pub fn with_folder(mut self, folder: &Path) -> Result<Self, ImageError> {
        let mut added = BTreeMap::new();
        for path in files(folder)? {
            let (name, image) = read(&path)?;
            if added.insert(name.clone(), image).is_some() {
                return Err(ImageError::Duplicate { path, name });
            }
        }
        self.images.extend(added);
        Ok(self)
    }

    /// Returns the image of this name. The tag `latest` is optional: `web` and `web:latest` are the
    /// same image, unless the table has both.
    pub fn get(&self, name: &str) -> Option<&Image> {
        const LATEST: &str = ":latest";
        let images = &self.images;
        images
            .get(name)
            .or_else(|| images.get(name.strip_suffix(LATEST)?))
            .or_else(|| images.get(&format!("{name}{LATEST}")))
    }

    /// Returns the names of all images, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.images.keys().map(String::as_str)
    }
}

impl Default for ImageTable {
    fn default() -> Self {
        Self::builtin()
    }
}

/// Lists the image files of a folder, sorted so that the same folder always gives the same error.
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
    // Opening a FIFO blocks until it has a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(malformed("not a regular file".to_owned()));
    }
    let text = fs::read(path).map_err(failed)?;
    parse(path.file_stem().unwrap_or_default(), &text).map_err(malformed)
}

/// Parses an image file, and returns the image with its name; an error says what is wrong.
pub(crate) fn parse(stem: &OsStr, text: &[u8]) -> Result<(String, Image), String> {
    // serde would also accept an array of the values of the fields.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err("not a JSON object".to_owned());
    }
    let image: Image = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let name = match &image.name {
        Some(name) => name.clone(),
        None => match stem.to_str() {
            Some(stem) => stem.to_owned(),
            None => return Err("the file name is not UTF-8".to_owned()),
        },
    };
    if name.is_empty() || name.contains(char::is_control) {
        return Err(format!(
            "the name {name:?} is empty or has control characters"
        ));
    }
    let payload = image.payload(None, None);
    payload.check().map_err(|error| error.to_string())?;
    for (field, value, range) in [
        ("cpus", image.cpus, Image::CPUS_RANGE),
        ("memory_mib", image.memory_mib, Image::MEMORY_MIB_RANGE),
        ("pids", image.pids, Image::PIDS_RANGE),
    ] {
        if value.is_some_and(|value| !range.contains(&value)) {
            let (min, max) = range.into_inner();
            return Err(format!("{field} must be between {min} and {max}"));
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
    fn a_folder_adds_to_the_built_in_images() {
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
    fn an_invalid_image_is_named_in_the_error() {
        for (text, wanted) in [
            ("{", "EOF"),
            ("", "not a JSON object"),
            (r#"["name"]"#, "not a JSON object"),
            (r#"{"comand": ["true"]}"#, "unknown field `comand`"),
            ("{}", "command: the command is empty"),
            (r#"{"command": [""]}"#, "command: the program name is empty"),
            (r#"{"command": ["a\u0000"]}"#, "command: an argument"),
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
            let result = ImageTable::builtin().with_folder(folder.path());
            let message = result.unwrap_err().to_string();
            assert!(
                message.contains("bad.json") && message.contains(wanted),
                "{message}"
            );
        }
        let pipe = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&pipe.path().join("p.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = ImageTable::builtin().with_folder(pipe.path()).unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
        let missing = ImageTable::builtin().with_folder(Path::new("/nonexistent"));
        assert!(matches!(missing, Err(ImageError::Read { .. })));
    }

    #[test]
    fn two_files_cannot_define_the_same_image() {
        let folder = folder(&[
            ("a.json", r#"{"name": "b", "command": ["true"]}"#),
            ("b.json", r#"{"command": ["true"]}"#),
        ]);
        let result = ImageTable::builtin().with_folder(folder.path());
        assert!(matches!(result, Err(ImageError::Duplicate { name, .. }) if name == "b"));
    }
}
