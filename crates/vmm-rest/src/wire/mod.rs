//! What goes over the wire, the same for server and client.
//!
//! The names of the schemas are those of the public API that this is a subset of. What a server
//! may leave out, because it is older or another, is read as its default.

mod advanced_options;
mod box_event;
mod box_metrics;
mod box_response;
pub(crate) mod box_size;
mod box_status;
mod create_box_request;
mod error_code;
mod error_model;
mod events_lost;
mod health;
mod list_boxes;
mod network_spec;
mod principal;
mod readiness;
mod runtime_metrics;
mod secret_spec;
mod security_preset;
mod server_config;
mod stop_box_request;
mod volume_spec;

pub use advanced_options::{Capabilities, CreateBoxAdvancedOptions};
pub use box_event::{BoxChange, BoxEvent};
pub use box_metrics::BoxMetricsResponse;
pub use box_response::BoxResponse;
pub use box_status::{BoxStatus, UnknownStatus};
pub use create_box_request::CreateBoxRequest;
pub use error_code::ErrorCode;
pub use error_model::{ErrorModel, ErrorResponse};
pub use events_lost::EventsLost;
pub use health::Health;
pub use list_boxes::{ListBoxesQuery, ListBoxesResponse};
pub use network_spec::{NetworkMode, NetworkSpec};
pub use principal::{Principal, PrincipalType};
pub use readiness::Readiness;
pub use runtime_metrics::RuntimeMetricsResponse;
pub use secret_spec::SecretSpec;
pub use security_preset::SecurityPreset;
pub use server_config::{ServerCapabilities, ServerConfig, ServerDefaults};
pub(crate) use stop_box_request::STOP_GRACE;
pub use stop_box_request::StopBoxRequest;
pub use volume_spec::VolumeSpec;
