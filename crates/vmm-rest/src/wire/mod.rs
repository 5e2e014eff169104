//! The JSON types of the API, shared by server and client.
//!
//! The schemas have the names of the public API that this API is a subset of. A field that a
//! response lacks, because its server is older or a different implementation, is read as the
//! default of the field's type.

#[cfg(any(feature = "client", feature = "server"))]
pub(crate) mod attach;
mod box_options;
mod box_response;
mod box_status;
mod create_box_request;
mod error;
mod event;
mod execution;
mod files;
mod image;
mod list_boxes;
mod metrics;
mod server_info;
mod stop_box_request;
mod whole_number;

pub use box_options::{
    Capabilities, CreateBoxAdvancedOptions, NetworkMode, NetworkSpec, SecretSpec, SecurityPreset,
    VolumeSpec,
};
pub use box_response::BoxResponse;
pub use box_status::{BoxStatus, Health, UnknownStatus};
pub use create_box_request::CreateBoxRequest;
#[cfg(feature = "server")]
pub(crate) use create_box_request::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB};
pub use error::{ErrorCode, ErrorModel, ErrorResponse};
pub use event::{BoxChange, BoxEvent, EventsLost};
pub use execution::{
    ExecRequest, ExecResponse, ExecutionInfo, ExecutionStatus, ListExecutionsResponse,
    ResizeRequest, SignalRequest,
};
#[cfg(feature = "server")]
pub(crate) use execution::{SIGNALS, exit_code};
pub use files::{GetFilesQuery, PutFilesQuery};
pub use image::{ImageInfo, ListImagesQuery, ListImagesResponse};
pub use list_boxes::{ListBoxesQuery, ListBoxesResponse};
pub use metrics::{BootTiming, BoxMetricsResponse, GuestMetrics, RuntimeMetricsResponse};
pub use server_info::{
    Principal, PrincipalType, Readiness, ServerCapabilities, ServerConfig, ServerDefaults,
};
#[cfg(feature = "server")]
pub(crate) use stop_box_request::DEFAULT_STOP_GRACE;
pub use stop_box_request::StopBoxRequest;
