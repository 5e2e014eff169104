use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use vmm_protocol::FileError;

use super::{Image, ImageError, ImageInfo, ImageStore};

/// The images that boxes can be created from, by name.
///
/// The image [`IDLE`](Self::IDLE), which waits until the box is stopped, is built in.
///
/// ```
/// use vmm_runtime::{Image, ImageTable};
///
/// let table = ImageTable::builtin().with("web", Image::command(["python3", "-m", "http.server"]));
/// assert!(table.get("web:latest")?.is_some());
/// # Ok::<(), vmm_runtime::ImageError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageTable {
    images: BTreeMap<String, ImageInfo>,
    store: Option<ImageStore>,
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
        let empty = Self {
            images: BTreeMap::new(),
            store: None,
        };
        empty.with(Self::IDLE, idle)
    }

    /// Adds an image, or replaces the one of the same name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, image: Image) -> Self {
        self.add(name.into(), image);
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
            let (name, image) = read_file(&path, path.file_stem().unwrap_or_default())?;
            if added.insert(name.clone(), image).is_some() {
                return Err(ImageError::Duplicate { path, name });
            }
        }
        for (name, image) in added {
            self.add(name, image);
        }
        Ok(self)
    }

    /// Adds the images of a store, in place of others with the same names. They are read when they are
    /// needed, so images that are built, replaced or removed later count.
    #[must_use]
    pub fn with_store(mut self, store: ImageStore) -> Self {
        self.store = Some(store);
        self
    }

    /// Returns the image of this name. The tag `latest` is optional: `web` and `web:latest` are the
    /// same image, unless the table has both.
    ///
    /// Blocks if the table has a store: in async code, call this function with `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if the image in the store cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<ImageInfo>, ImageError> {
        const LATEST: &str = ":latest";
        let tagged = match name.strip_suffix(LATEST) {
            Some(bare) => bare.to_owned(),
            None => format!("{name}{LATEST}"),
        };
        for name in [name, &tagged] {
            if let Some(store) = &self.store
                && let Some(info) = store.get(name)?
            {
                return Ok(Some(info));
            }
            if let Some(info) = self.images.get(name) {
                return Ok(Some(info.clone()));
            }
        }
        Ok(None)
    }

    /// Returns all images, sorted by name.
    ///
    /// Blocks if the table has a store: in async code, call this function with `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if an image in the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut images = self.images.clone();
        if let Some(store) = &self.store {
            let stored = store.list()?.into_iter();
            images.extend(stored.map(|info| (info.name.clone(), info)));
        }
        Ok(images.into_values().collect())
    }

    fn add(&mut self, name: String, image: Image) {
        let info = ImageInfo {
            name: name.clone(),
            image,
            created_at: Timestamp::now(),
            size_bytes: None,
        };
        self.images.insert(name, info);
    }
}

impl Default for ImageTable {
    fn default() -> Self {
        Self::builtin()
    }
}

/// Lists the image files of a folder, sorted so that the same folder always gives the same error.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |source| ImageError::File(FileError::new("read", folder, source));
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

/// Reads an image file. Returns the image with its name, which is `stem` if the file has none.
pub(super) fn read_file(path: &Path, stem: &OsStr) -> Result<(String, Image), ImageError> {
    let failed = |source| ImageError::File(FileError::new("read", path, source));
    let malformed = |reason: String| ImageError::Malformed {
        path: path.to_owned(),
        reason,
    };
    // Opening a FIFO blocks until it has a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(malformed("not a regular file".to_owned()));
    }
    let text = fs::read(path).map_err(failed)?;
    parse(stem, &text).map_err(malformed)
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
        let names: Vec<_> = table
            .list()
            .unwrap()
            .into_iter()
            .map(|info| info.name)
            .collect();
        assert_eq!(names, ["idle", "py:3.11", "web"]);
        let get = |name| table.get(name).unwrap();
        assert_eq!(get("web").unwrap().image.env["A"], "b");
        assert!(get("web:latest").is_some() && get("py").is_none());
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
        assert!(matches!(missing, Err(ImageError::File(_))));
    }

    #[test]
    fn images_of_a_store_are_found_as_soon_as_they_are_built() {
        let home = tempfile::tempdir().unwrap();
        let store = ImageStore::new(home.path().join("images"));
        let table = ImageTable::builtin().with_store(store.clone());
        assert!(table.get("web").unwrap().is_none());
        let web = Image::command(["web"]);
        store.stage("web:latest").unwrap().commit(&web).unwrap();
        store.stage("idle").unwrap().commit(&web).unwrap();
        for name in ["web", "web:latest", "idle"] {
            assert_eq!(table.get(name).unwrap().unwrap().image, web);
        }
        let names: Vec<_> = table
            .list()
            .unwrap()
            .into_iter()
            .map(|info| info.name)
            .collect();
        assert_eq!(names, ["idle", "web:latest"]);
        store.remove("idle").unwrap();
        assert_ne!(table.get("idle").unwrap().unwrap().image, web);
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
