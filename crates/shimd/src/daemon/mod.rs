//! The daemon: a runtime, the server over it, and the service manager that looks after both.

mod descriptors;
mod inherited;
mod log_format;
mod serve;
mod service_manager;
mod signals;
mod watchdog;

use inherited::Inherited;
use log_format::LogFormat;
pub(crate) use serve::Serve;
