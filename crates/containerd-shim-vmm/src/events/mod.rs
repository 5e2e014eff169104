//! The events of a pod, in files until containerd has acknowledged them.

mod files;
mod forward;
mod queue;
mod task;

use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;

pub(crate) use files::has_event;
pub(crate) use forward::SUBSCRIBE_TIME;
pub(crate) use queue::EventQueue;

/// Returns the event in an envelope, if it is of this type.
pub(crate) fn decode<M: MessageFull>(envelope: &Envelope) -> Option<M> {
    let event = envelope.event.as_ref()?;
    let is_of_type = event.type_url == M::descriptor().full_name();
    let value = is_of_type.then_some(&event.value)?;
    M::parse_from_bytes(value).ok()
}

/// Converts a time to a message.
pub(crate) fn timestamp(time: jiff::Timestamp) -> Timestamp {
    let mut timestamp = Timestamp::new();
    timestamp.seconds = time.as_second();
    timestamp.nanos = time.subsec_nanosecond();
    timestamp
}
