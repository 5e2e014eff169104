use vmm_rest::wire::BoxResponse;
use vmm_shim::ExitRecord;

/// How a box ended.
#[derive(Debug)]
pub(super) struct End {
    /// The code, or 128 + signal.
    pub(super) code: Option<i32>,
    /// Why it failed.
    pub(super) error: Option<String>,
}

impl From<BoxResponse> for End {
    fn from(ended: BoxResponse) -> Self {
        Self {
            code: ended.exit_code,
            error: ended.error,
        }
    }
}

impl From<ExitRecord> for End {
    fn from(record: ExitRecord) -> Self {
        Self {
            code: Some(record.ending.shell_code()),
            error: None,
        }
    }
}
