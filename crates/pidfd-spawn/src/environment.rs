use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::c_strings::{CStringArray, CStrings, NulByte};

/// The changes that a command makes to the environment that it inherits.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    inherits_nothing: bool,
    /// A value, or `None` where the inherited variable is removed.
    changes: BTreeMap<OsString, Option<OsString>>,
}

/// The environment of a child.
pub(crate) struct Captured {
    pub(crate) strings: CStringArray,
    pub(crate) path: Option<OsString>,
}

impl Environment {
    pub(crate) fn set(&mut self, key: &OsStr, value: &OsStr) {
        self.changes.insert(key.to_owned(), Some(value.to_owned()));
    }

    pub(crate) fn remove(&mut self, key: &OsStr) {
        if self.inherits_nothing {
            self.changes.remove(key);
        } else {
            self.changes.insert(key.to_owned(), None);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.inherits_nothing = true;
        self.changes.clear();
    }

    pub(crate) fn changes(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.changes
            .iter()
            .map(|(key, value)| (key.as_os_str(), value.as_deref()))
    }

    pub(crate) fn capture(&self) -> Result<Captured, NulByte> {
        let mut block = Block::default();
        if self.changes.is_empty() && !self.inherits_nothing {
            for (key, value) in env::vars_os() {
                block.push(&key, &value)?;
            }
            return Ok(block.finish());
        }

        let mut vars = BTreeMap::new();
        if !self.inherits_nothing {
            vars.extend(env::vars_os());
        }
        for (key, value) in &self.changes {
            match value {
                Some(value) => vars.insert(key.clone(), value.clone()),
                None => vars.remove(key),
            };
        }
        for (key, value) in &vars {
            block.push(key, value)?;
        }
        Ok(block.finish())
    }
}

#[derive(Default)]
struct Block {
    strings: CStrings,
    path: Option<OsString>,
}

impl Block {
    fn push(&mut self, key: &OsStr, value: &OsStr) -> Result<(), NulByte> {
        if key == "PATH" {
            self.path = Some(value.to_owned());
        }
        self.strings.push(&[key.as_bytes(), b"=", value.as_bytes()])
    }

    fn finish(self) -> Captured {
        Captured {
            strings: self.strings.freeze(),
            path: self.path,
        }
    }
}
