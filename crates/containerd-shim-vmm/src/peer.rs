//! The process at the other end of a connection.

use std::os::fd::RawFd;

use ttrpc::r#async::TtrpcContext;
use ttrpc::security_extension::{
    AcceptHook, ConnectionData, ConnectionDataExt, HookError, HookOutput,
};

use crate::sys;

const PID: &str = "pid";

/// Keeps the pid of each client with its connection.
#[derive(Debug)]
pub(crate) struct RecordPeer;

impl AcceptHook for RecordPeer {
    fn on_accept(&self, socket: RawFd) -> Result<HookOutput, HookError> {
        let pid = sys::peer_pid(socket).map_err(HookError::Io)?;
        let mut data = ConnectionData::new();
        data.insert(PID.to_owned(), Box::new(pid));
        Ok(HookOutput {
            data,
            payload_transform: None,
        })
    }
}

/// Returns the pid of the client that has sent a request.
pub(crate) fn pid(context: &TtrpcContext) -> Option<u32> {
    context.connection_data.get_typed::<u32>(PID).copied()
}
